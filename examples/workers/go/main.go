// Counts the words of files: worker HOST:PORT [NAME]
//
// Tasks come as JSON lines on stdin: {"task_id": "t1", "path": "README.md"}, with `pace`,
// the least seconds to take, `group_id` and `index` if wanted. For each one done a line
// goes to stdout: {"task_id": "t1", "state": "SUCCESS"}.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"regexp"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	pb "resultd.dev/go/resultd/v1"
)

const steps = 4

var word = regexp.MustCompile(`[A-Za-z0-9_]+`)

// Task is a line of stdin.
type Task struct {
	TaskID  string  `json:"task_id"`
	Path    string  `json:"path"`
	Pace    float64 `json:"pace"`
	GroupID string  `json:"group_id"`
	Index   *uint32 `json:"index"`
}

// stackError is an error with the stack it was made on.
type stackError struct {
	error
	stack string
}

func (e *stackError) Unwrap() error { return e.error }

func withStack(err error) error { return &stackError{err, string(debug.Stack())} }

// countWords counts the words of UTF-8 text and calls step after each part.
func countWords(path string, step func(current, total int) error) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, withStack(err)
	}
	if !utf8.Valid(data) {
		return 0, withStack(fmt.Errorf("%s is not UTF-8", path))
	}
	lines := strings.Split(string(data), "\n")
	size := (len(lines) + steps - 1) / steps
	words := 0
	for start := 0; start < len(lines); start += size {
		end := start + size
		if end > len(lines) {
			end = len(lines)
		}
		for _, line := range lines[start:end] {
			words += len(word.FindAllString(line, -1))
		}
		if err := step(end, len(lines)); err != nil {
			return 0, err
		}
	}
	return words, nil
}

func failure(err error) *pb.Failure {
	f := &pb.Failure{Type: fmt.Sprintf("%T", err), Module: "main", Message: err.Error(), Language: "go"}
	var stacked *stackError
	if errors.As(err, &stacked) {
		f.Type, f.Traceback = fmt.Sprintf("%T", stacked.error), stacked.stack
	}
	return f
}

func run(ctx context.Context, reporter *Reporter, task Task) (*pb.StoreResultResponse, error) {
	meta := func(state pb.State) *pb.TaskMeta {
		return &pb.TaskMeta{
			TaskId: task.TaskID, State: state, Name: "count_words", GroupId: task.GroupID, Index: task.Index,
		}
	}
	if _, err := reporter.Report(ctx, meta(pb.State_STATE_RECEIVED)); err != nil {
		return nil, err
	}
	work, end := reporter.Begin(ctx, task.TaskID)
	defer end()
	if _, err := reporter.Report(ctx, meta(pb.State_STATE_STARTED)); err != nil {
		return nil, err
	}

	words, err := countWords(task.Path, func(current, total int) error {
		pause := time.Duration(task.Pace * float64(time.Second) / steps)
		if err := sleep(work, pause); err != nil || current == total {
			return err
		}
		progress := meta(pb.State_STATE_PROGRESS)
		progress.Progress = &pb.Progress{Current: int64(current), Total: int64(total)}
		_, err := reporter.Report(ctx, progress)
		return err
	})

	report := meta(pb.State_STATE_SUCCESS)
	switch {
	case errors.Is(err, context.Canceled) && ctx.Err() == nil:
		report.State = pb.State_STATE_REVOKED
		report.Failure = &pb.Failure{Type: "Cancelled", Module: "main", Message: "cancelled while it ran", Language: "go"}
	case err != nil:
		report.State = pb.State_STATE_FAILURE
		report.Failure = failure(err)
	default:
		data, err := json.Marshal(map[string]int{"words": words})
		if err != nil {
			return nil, err
		}
		report.Value = &pb.Payload{ContentType: "application/json", Data: data}
	}
	return reporter.Report(ctx, report)
}

func main() {
	address, name := "127.0.0.1:7758", fmt.Sprintf("go-%d", os.Getpid())
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if len(os.Args) > 2 {
		name = os.Args[2]
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	reporter, err := NewReporter(ctx, address, name)
	if err != nil {
		log.Fatal(err)
	}
	defer reporter.Close()
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var task Task
		if err := json.Unmarshal(lines.Bytes(), &task); err != nil {
			log.Fatal(err)
		}
		answer, err := run(ctx, reporter, task)
		if err != nil {
			log.Fatal(err)
		}
		state := strings.TrimPrefix(answer.State.String(), "STATE_")
		if err := json.NewEncoder(os.Stdout).Encode(map[string]string{"task_id": task.TaskID, "state": state}); err != nil {
			log.Fatal(err)
		}
	}
}
