// The fleet: which replicas there are, and which of them are ready.

package main

import (
	"context"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"example.com/cos/bindings/triton/gateway/wire"
)

const (
	probeEvery   = time.Second
	probeTimeout = 5 * time.Second // a busy replica may take a while
)

// fleet is the replicas that answer requests.
type fleet struct {
	routing
	metrics  *metrics
	mu       sync.Mutex // guards all below, and the state of the replicas
	replicas map[string]*replica
}

// replica is a Triton server.
type replica struct {
	address     string
	connection  *grpc.ClientConn
	client      wire.GRPCInferenceServiceClient
	stop        context.CancelFunc // ends its probes
	ready, gone bool               // gone: its name no longer has this address
	load        int                // requests that it has
}

// follow resolves names of the form HOST:PORT again and again, until the context ends.
func (f *fleet) follow(ctx context.Context, names []string, every time.Duration) {
	known := map[string][]string{}
	for ctx.Err() == nil {
		for _, name := range names {
			if addresses, err := resolve(ctx, name); err == nil {
				known[name] = addresses
			} else { // what was known stays: its probes tell whether it is still there
				slog.Warn("name is not resolved", "name", name, "error", text(err))
			}
			f.update(ctx, slices.Concat(slices.Collect(maps.Values(known))...)) // the next name may take its time
		}
		pause(ctx, every)
	}
}

// resolve returns all addresses of a name. Where there are some of both kinds, they are those of IPv4: a replica must
// not count twice.
func resolve(ctx context.Context, name string) ([]string, error) {
	host, port, err := net.SplitHostPort(name)
	if err != nil {
		return nil, err
	}
	asking, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(asking, "ip", host)
	if err != nil {
		return nil, err
	}
	has4 := slices.ContainsFunc(found, func(ip netip.Addr) bool { return ip.Unmap().Is4() })
	var addresses []string
	for _, ip := range found {
		if ip = ip.Unmap(); ip.Is4() == has4 {
			addresses = append(addresses, net.JoinHostPort(ip.String(), port))
		}
	}
	return addresses, nil
}

// update adds new replicas, and lets those go whose addresses are no longer there.
func (f *fleet) update(ctx context.Context, addresses []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, address := range addresses {
		if f.replicas[address] == nil {
			r, err := dial(address)
			if err != nil {
				slog.Error("replica cannot be used", "replica", address, "error", text(err))
				continue
			}
			probing, stop := context.WithCancel(ctx)
			r.stop = stop
			f.replicas[address] = r
			go f.probe(probing, r)
		}
	}
	for address, r := range f.replicas {
		if !slices.Contains(addresses, address) {
			slog.Info("replica is gone", "replica", address)
			delete(f.replicas, address)
			r.gone = true
			r.stop()
			r.closeIfDone()
		}
	}
}

// dial makes a replica, without waiting for it. Its one connection carries all requests. A connection on which nothing
// comes, not even the answers to probes, is lost after 15 seconds, with its requests.
func dial(address string) (*replica, error) {
	calls := grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32))
	again := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: probeEvery}
	connection, err := grpc.NewClient("passthrough:///"+address, calls, grpc.WithNoProxy(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: probeTimeout}))
	if err != nil {
		return nil, err
	}
	client := wire.NewGRPCInferenceServiceClient(connection)
	return &replica{address: address, connection: connection, client: client}, nil
}

// probe asks a replica again and again whether its model is ready. Triton says no as soon as it drains.
func (f *fleet) probe(ctx context.Context, r *replica) {
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, probeTimeout)
		answer, err := r.client.ModelReady(asking, &wire.ModelReadyRequest{Name: f.model})
		cancel()
		if ctx.Err() == nil {
			f.mark(r, err == nil && answer.GetReady(), err)
		}
		pause(ctx, probeEvery)
	}
}

// mark says whether a replica may get requests, until the next probe.
func (f *fleet) mark(r *replica, ready bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r.ready != ready {
		slog.Info("replica", "replica", r.address, "ready", ready, "error", text(err))
	}
	r.ready = ready
}

// release ends a request of a replica.
func (f *fleet) release(r *replica) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r.load--
	r.closeIfDone()
}

func (r *replica) closeIfDone() {
	if r.gone && r.load == 0 {
		_ = r.connection.Close()
	}
}

// isReady is whether some replica is.
func (f *fleet) isReady() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.replicas {
		if r.ready {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, long time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(long):
	}
}

// text is an error for the log.
func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
