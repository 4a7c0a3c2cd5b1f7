// Command traffic is what runs in the sandbox's pods, and what loads them.
//
//	traffic serve -name order-1 -tcp 8080,8081 -udp 8080
//	traffic load -address 10.96.0.10:80 -rate 200 -seconds 5
//
// A server answers every HTTP request and every datagram with one line: its name, the client's address and the
// client's port as the server sees them, separated by blanks.
package main

import (
	"fmt"
	"os"
)

func main() {
	commands := map[string]func([]string) error{"serve": serve, "load": load}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: traffic serve|load [flags]; -h after either shows its flags")
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		os.Exit(1)
	}
}
