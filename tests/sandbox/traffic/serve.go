package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// serve listens until SIGTERM, then accepts nothing more and lets requests under way end.
func serve(arguments []string) error {
	flags := flag.NewFlagSet("serve", flag.ExitOnError)
	name := flags.String("name", "", "what answers begin with")
	tcp := flags.String("tcp", "", "HTTP ports, separated by commas")
	udp := flags.String("udp", "", "UDP ports, separated by commas")
	delay := flags.Duration("delay", 0, "how long an HTTP answer takes; the query ?delay=1s overrides it")
	flags.Parse(arguments)

	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	failed := make(chan error)
	server := &http.Server{Handler: answer(*name, *delay)}
	for _, port := range list(*tcp) {
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		go func() { failed <- server.Serve(listener) }()
	}
	for _, port := range list(*udp) {
		socket, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		go func() { failed <- echo(*name, socket) }()
	}
	fmt.Println("ready")
	select {
	case err := <-failed:
		return err
	case <-stop.Done():
	}
	patience, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return server.Shutdown(patience)
}

func answer(name string, delay time.Duration) http.HandlerFunc {
	return func(response http.ResponseWriter, request *http.Request) {
		wait := delay
		if asked, err := time.ParseDuration(request.URL.Query().Get("delay")); err == nil {
			wait = asked
		}
		time.Sleep(wait)
		fmt.Fprintln(response, line(name, request.RemoteAddr))
	}
}

func echo(name string, socket net.PacketConn) error {
	buffer := make([]byte, 1500)
	for {
		_, client, err := socket.ReadFrom(buffer)
		if err != nil {
			return err
		}
		// The client may be gone; that is no reason to end.
		_, _ = socket.WriteTo([]byte(line(name, client.String())), client)
	}
}

func line(name, client string) string {
	seen, err := netip.ParseAddrPort(client)
	if err != nil {
		return name + " " + client
	}
	return fmt.Sprintf("%s %s %d", name, seen.Addr().Unmap(), seen.Port())
}

func list(comma string) []string {
	if comma == "" {
		return nil
	}
	return strings.Split(comma, ",")
}
