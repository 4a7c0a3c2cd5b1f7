package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// The report of one load, as JSON on standard output.
type report struct {
	Sent    int            `json:"sent"`
	Failed  int            `json:"failed"`
	Slow    int            `json:"slow"`    // answered, but later than -slow
	Answers map[string]int `json:"answers"` // by server
	Errors  map[string]int `json:"errors"`  // by text
	Median  float64        `json:"median_ms"`
	P99     float64        `json:"p99_ms"`
	Max     float64        `json:"max_ms"`
	Seconds float64        `json:"seconds"`

	lock      sync.Mutex
	latencies []float64
}

type options struct {
	address  string
	path     string
	rate     float64
	clients  int
	ports    int
	rounds   int
	seconds  time.Duration
	timeout  time.Duration
	slow     time.Duration
	sources  []net.IP
	keepOpen bool
}

// load makes requests until -seconds are over or SIGTERM comes, then prints its report.
func load(arguments []string) error {
	o := options{}
	flags := flag.NewFlagSet("load", flag.ExitOnError)
	flags.StringVar(&o.address, "address", "", "host:port that is asked")
	flags.StringVar(&o.path, "path", "/", "path and query of the requests")
	flags.Float64Var(&o.rate, "rate", 0, "requests per second, begun whether or not earlier ones are answered")
	flags.IntVar(&o.clients, "clients", 0, "instead of a rate: so many ask one after the other")
	flags.IntVar(&o.ports, "source-port", 0, "with -clients: all use this port in round 1, the next in round 2, and wait for each other")
	flags.IntVar(&o.rounds, "rounds", 0, "with -source-port: end after so many, if -seconds are not over before")
	flags.DurationVar(&o.seconds, "seconds", 5*time.Second, "how long")
	flags.DurationVar(&o.timeout, "timeout", 3*time.Second, "after which a request has failed")
	flags.DurationVar(&o.slow, "slow", 200*time.Millisecond, "after which an answered request counts as slow")
	flags.BoolVar(&o.keepOpen, "keep-open", false, "with -clients: one connection for all requests of a client")
	sources := flags.String("sources", "", "client addresses, used in turn, separated by commas")
	flags.Parse(arguments)
	for _, text := range list(*sources) {
		ip := net.ParseIP(text)
		if ip == nil {
			return fmt.Errorf("%q is not an address", text)
		}
		o.sources = append(o.sources, ip)
	}
	if (o.rate > 0) == (o.clients > 0) {
		return errors.New("either -rate or -clients, please")
	}

	done, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	done, cancel = context.WithTimeout(done, o.seconds)
	defer cancel()
	result := &report{Answers: map[string]int{}, Errors: map[string]int{}}
	started := time.Now()
	switch {
	case o.rate > 0:
		atRate(done, o, result)
	case o.ports > 0:
		inRounds(done, o, result)
	default:
		oneAfterTheOther(done, o, result)
	}
	result.Seconds = time.Since(started).Seconds()
	return result.print()
}

// atRate opens a new connection per request.
func atRate(done context.Context, o options, result *report) {
	var running sync.WaitGroup
	defer running.Wait()
	pause := time.Duration(float64(time.Second) / o.rate)
	next := time.Now()
	for number := 0; done.Err() == nil; number++ {
		running.Go(func() { result.count(o, once(o, o.local(number, 0))) })
		next = next.Add(pause)
		time.Sleep(time.Until(next))
	}
}

// inRounds has every client use the same source port at the same moment: a NAT in between must tell them apart.
func inRounds(done context.Context, o options, result *report) {
	for round := 0; done.Err() == nil && (o.rounds == 0 || round < o.rounds); round++ {
		var running sync.WaitGroup
		for client := range o.clients {
			running.Go(func() { result.count(o, once(o, o.local(client, o.ports+round))) })
		}
		running.Wait()
	}
}

func oneAfterTheOther(done context.Context, o options, result *report) {
	var running sync.WaitGroup
	defer running.Wait()
	for client := range o.clients {
		running.Go(func() {
			ask := func() outcome { return once(o, o.local(client, 0)) }
			if o.keepOpen {
				ask = kept(o, o.local(client, 0))
			}
			for done.Err() == nil {
				result.count(o, ask())
			}
		})
	}
}

func (o options) local(number, port int) net.Addr {
	if len(o.sources) == 0 && port == 0 {
		return nil
	}
	address := &net.TCPAddr{Port: port}
	if len(o.sources) > 0 {
		address.IP = o.sources[number%len(o.sources)]
	}
	return address
}

type outcome struct {
	server string
	took   time.Duration
	err    error
}

// once makes a connection for one request and closes it first, as most clients do.
func once(o options, local net.Addr) outcome {
	started := time.Now()
	server, err := func() (string, error) {
		dialer := net.Dialer{Timeout: o.timeout, LocalAddr: local}
		connection, err := dialer.Dial("tcp", o.address)
		if err != nil {
			return "", err
		}
		defer connection.Close()
		if err := connection.SetDeadline(started.Add(o.timeout)); err != nil {
			return "", err
		}
		fmt.Fprintf(connection, "GET %s HTTP/1.1\r\nHost: load\r\nConnection: close\r\n\r\n", o.path)
		response, err := http.ReadResponse(bufio.NewReader(connection), nil)
		if err != nil {
			return "", err
		}
		return name(response)
	}()
	return outcome{server, time.Since(started), err}
}

func kept(o options, local net.Addr) func() outcome {
	dialer := net.Dialer{Timeout: o.timeout, LocalAddr: local}
	transport := &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: 1}
	client := http.Client{Transport: transport, Timeout: o.timeout}
	return func() outcome {
		started := time.Now()
		response, err := client.Get("http://" + o.address + o.path)
		if err != nil {
			return outcome{err: err}
		}
		server, err := name(response)
		return outcome{server, time.Since(started), err}
	}
}

func name(response *http.Response) (string, error) {
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", errors.New(response.Status)
	}
	server, _, _ := strings.Cut(string(body), " ")
	return server, nil
}

func (r *report) count(o options, got outcome) {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.Sent++
	if got.err != nil {
		r.Failed++
		r.Errors[cause(got.err)]++
		return
	}
	r.Answers[got.server]++
	r.latencies = append(r.latencies, float64(got.took.Microseconds())/1000)
	if got.took > o.slow {
		r.Slow++
	}
}

// cause is the error without addresses and ports, so that equal ones are counted together.
func cause(err error) string {
	var number syscall.Errno
	var network net.Error
	switch {
	case errors.As(err, &number):
		return number.Error()
	case errors.As(err, &network) && network.Timeout():
		return "timeout"
	}
	return err.Error()
}

func (r *report) print() error {
	if n := len(r.latencies); n > 0 {
		slices.Sort(r.latencies)
		r.Median, r.P99, r.Max = r.latencies[n/2], r.latencies[n*99/100], r.latencies[n-1]
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}
