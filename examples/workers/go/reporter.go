package main

import (
	"context"
	"math/rand"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "resultd.dev/go/resultd/v1"
)

const (
	callMax    = 10 * time.Second
	pauseMin   = 50 * time.Millisecond
	pauseMax   = 2 * time.Second
	refusedMin = time.Second // what the server asks for in RetryInfo
)

// Reporter is what a worker needs of resultd: report what happens to a task, hear
// what is to stop.
type Reporter struct {
	name    string
	conn    *grpc.ClientConn
	results pb.ResultServiceClient
	workers pb.WorkerServiceClient

	mu      sync.Mutex
	running map[string]context.CancelFunc
	changed chan struct{} // one place: something was added or removed
}

// NewReporter opens a connection and listens for revocations until ctx is done.
func NewReporter(ctx context.Context, address, name string) (*Reporter, error) {
	params := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: pauseMin, Multiplier: 2, Jitter: 0.5, MaxDelay: pauseMax},
		MinConnectTimeout: pauseMax,
	}
	conn, err := grpc.Dial(address, grpc.WithInsecure(), grpc.WithConnectParams(params))
	if err != nil {
		return nil, err
	}
	r := &Reporter{
		name:    name,
		conn:    conn,
		results: pb.NewResultServiceClient(conn),
		workers: pb.NewWorkerServiceClient(conn),
		running: map[string]context.CancelFunc{},
		changed: make(chan struct{}, 1),
	}
	go r.watch(ctx)
	return r, nil
}

// Report stores a report. It is durable when Report returns; until a server has room for
// it, it is tried again.
func (r *Reporter) Report(ctx context.Context, meta *pb.TaskMeta) (*pb.StoreResultResponse, error) {
	meta.Worker = r.name
	for pause := pauseMin; ; pause = minDuration(2*pause, pauseMax) {
		call, cancel := context.WithTimeout(ctx, callMax)
		answer, err := r.results.StoreResult(call, &pb.StoreResultRequest{Meta: meta})
		cancel()
		if err == nil {
			if answer.CancelRequested {
				r.cancel(meta.TaskId)
			}
			return answer, nil
		}
		if !retryable(err) {
			return nil, err
		}
		wait := pause/2 + time.Duration(rand.Int63n(int64(pause/2)))
		if refused(err) {
			wait += refusedMin
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// refused says whether the server ended the call: its refusals carry details, what gRPC
// itself ends a call with does not.
func refused(err error) bool { return len(status.Convert(err).Proto().GetDetails()) > 0 }

// retryable says whether the same report may be taken later.
func retryable(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded:
		return true
	case codes.Canceled:
		// How a server that stops, or is flooded, ends calls it has not begun.
		return true
	case codes.ResourceExhausted:
		// Of the server a full store or quota, which passes; of gRPC itself a message that
		// is too large, and stays so.
		return refused(err)
	default:
		return false
	}
}

// Begin gives a context that ends when somebody asks for the task to stop.
func (r *Reporter) Begin(ctx context.Context, taskID string) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	r.mu.Lock()
	r.running[taskID] = cancel
	r.mu.Unlock()
	r.notify()
	return ctx, func() {
		cancel()
		r.mu.Lock()
		delete(r.running, taskID)
		r.mu.Unlock()
		r.notify()
	}
}

// Close closes the connection.
func (r *Reporter) Close() error { return r.conn.Close() }

func (r *Reporter) cancel(taskID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if cancel, ok := r.running[taskID]; ok {
		cancel()
	}
}

func (r *Reporter) notify() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

// watch keeps one stream for all tasks. Whatever ends it, the next one names what
// still runs.
func (r *Reporter) watch(ctx context.Context) {
	for ctx.Err() == nil {
		r.watchOnce(ctx)
		_ = sleep(ctx, pauseMin+time.Duration(rand.Int63n(int64(pauseMax))))
	}
}

func (r *Reporter) watchOnce(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.workers.WatchRevocations(ctx)
	if err != nil {
		return
	}
	go func() {
		defer cancel()
		for {
			frame, err := stream.Recv()
			if err != nil {
				return
			}
			for _, revocation := range frame.Revocations {
				r.cancel(revocation.TaskId)
			}
		}
	}()
	told := map[string]bool{}
	r.notify()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.changed:
			if request := r.difference(told); request != nil && stream.Send(request) != nil {
				return
			}
		}
	}
}

// difference is what the server is to be told beyond what it was told.
func (r *Reporter) difference(told map[string]bool) *pb.WatchRevocationsRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	request := &pb.WatchRevocationsRequest{}
	for id := range r.running {
		if !told[id] {
			told[id] = true
			request.AddTaskIds = append(request.AddTaskIds, id)
		}
	}
	for id := range told {
		if _, ok := r.running[id]; !ok {
			delete(told, id)
			request.RemoveTaskIds = append(request.RemoveTaskIds, id)
		}
	}
	if len(request.AddTaskIds)+len(request.RemoveTaskIds) == 0 {
		return nil
	}
	return request
}

func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func minDuration(a, b time.Duration) time.Duration {
	if a < b {
		return a
	}
	return b
}
