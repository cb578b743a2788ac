// Gateway serves OpenAI's protocol from a fleet of Triton servers that have the backend of CoS. README.md says how it
// routes, and what happens when something fails.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// options are the arguments of the program.
type options struct {
	limits
	routing
	listen     string
	replicas   []string
	resolve    time.Duration
	drainDelay time.Duration
}

func parse(arguments []string, help io.Writer) (o options, err error) {
	set := flag.NewFlagSet("gateway", flag.ContinueOnError)
	set.SetOutput(help)
	set.StringVar(&o.listen, "listen", ":8080", "`ADDRESS` where it listens; port 0 is any free one")
	replicas := set.String("replicas", "", "`HOST:PORT,…`: gRPC of Triton; each address that a name has is a replica")
	set.StringVar(&o.model, "model", "", "`NAME` of the model in Triton, and for clients")
	set.DurationVar(&o.resolve, "resolve", 5*time.Second, "`TIME` after which names are resolved again")
	set.IntVar(&o.prefix, "prefix", 512, "`BYTES` of a prompt that decide which replica it goes to")
	set.IntVar(&o.batch, "batch", 16, "`REQUESTS` of a replica before its prefixes go to others")
	set.IntVar(&o.limit, "max-in-flight", 128, "most `REQUESTS` of a replica; more are answered with 429")
	set.IntVar(&o.tries, "tries", 3, "`REPLICAS` that a request is tried with")
	set.Int64Var(&o.maxBody, "max-body", 4<<20, "`BYTES` of the largest body")
	set.DurationVar(&o.timeout, "timeout", 10*time.Minute, "`TIME` that an answer may take")
	set.DurationVar(&o.patience, "client-timeout", 30*time.Second,
		"`TIME` that a client may take to send a request, or to take a part of an answer")
	set.DurationVar(&o.drainDelay, "drain-delay", 5*time.Second,
		"`TIME` after SIGTERM in which it still takes requests, because load balancers notice late")
	if err = set.Parse(arguments); err != nil {
		return o, err
	}
	o.replicas = strings.Split(*replicas, ",")
	for _, name := range o.replicas {
		if host, port, err := net.SplitHostPort(name); err != nil || host == "" || port == "" {
			return o, fmt.Errorf("--replicas has %q; let it be HOST:PORT,…, with the gRPC port of Triton", name)
		}
	}
	for name, wrong := range map[string]bool{"resolve": o.resolve < time.Millisecond, "prefix": o.prefix < 0,
		"batch": o.batch < 1, "max-in-flight": o.limit < 1, "tries": o.tries < 1,
		"max-body": o.maxBody < 1 || o.maxBody > 1<<30, "timeout": o.timeout <= 0, "client-timeout": o.patience <= 0,
		"drain-delay": o.drainDelay < 0} {
		if wrong {
			return o, fmt.Errorf("--%s is %s, which is out of range", name, set.Lookup(name).Value)
		}
	}
	if o.model == "" || set.NArg() > 0 {
		return o, errors.New("usage: gateway --replicas HOST:PORT,… --model NAME [OPTION]…; see --help")
	}
	return o, nil
}

func main() {
	o, err := parse(os.Args[1:], os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return
	} else if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	slog.SetDefault(slog.New(slog.NewJSONHandler(os.Stderr, nil)))
	if err := serve(o); err != nil {
		slog.Error("gateway ends", "error", err.Error())
		os.Exit(1)
	}
}

// serve serves until SIGTERM or SIGINT, and then until all requests are answered.
func serve(o options) error {
	signals, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	m := newMetrics()
	f := &fleet{routing: o.routing, metrics: m, replicas: map[string]*replica{}}
	m.registry.MustRegister(f)
	g := &gateway{limits: o.limits, fleet: f, metrics: m, started: time.Now()}
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	go f.follow(context.Background(), o.replicas, o.resolve) // replicas are still needed while it drains
	server := &http.Server{Handler: g, ReadTimeout: o.patience, IdleTimeout: 2 * time.Minute}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Printf("listening on %v\n", listener.Addr())
	select {
	case err := <-failed:
		return err
	case <-signals.Done():
	}
	stop() // a second signal ends the process at once
	slog.Info("gateway drains")
	g.drains.Store(true)
	server.SetKeepAlivesEnabled(false) // the next request of a client then goes to another gateway
	time.Sleep(o.drainDelay)
	ending, cancel := context.WithTimeout(context.Background(), o.timeout)
	defer cancel()
	return server.Shutdown(ending)
}
