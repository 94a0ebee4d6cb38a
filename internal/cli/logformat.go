// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"sync"
	"time"
)

// A logWriter gives each line written to it the form that --log-format and
// --log-timestamp ask for. It is safe for concurrent use.
type logWriter struct {
	w     io.Writer
	json  bool
	stamp bool
	now   func() time.Time

	mu   sync.Mutex
	rest []byte // of a line that is not complete
}

// logWriter returns where standard error goes.
func (v *kanikoValues) logWriter(w io.Writer) io.Writer {
	if v.logFormat != "json" && !v.logTimestamp {
		return w
	}
	return &logWriter{w: w, json: v.logFormat == "json", stamp: v.logTimestamp, now: time.Now}
}

// Write implements io.Writer.
func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	var out bytes.Buffer
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			break
		}
		l.rest = rest
		l.line(&out, strings.TrimRight(string(line), "\r"))
	}
	l.rest = bytes.Clone(l.rest)
	if out.Len() == 0 {
		return len(p), nil
	}
	if _, err := l.w.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (l *logWriter) line(out *bytes.Buffer, text string) {
	if !l.json {
		out.WriteString(l.now().Format(time.RFC3339) + " " + text + "\n")
		return
	}
	if text == "" {
		return
	}
	level := "info"
	if strings.HasPrefix(text, failurePrefix) {
		level = "error"
	}
	// The names are those of kaniko's log.
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(struct {
		Level string `json:"level"`
		Msg   string `json:"msg"`
		Time  string `json:"time"`
	}{level, text, l.now().Format(time.RFC3339)})
}
