// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Phases of a parked container.
const (
	phaseParking   = "parking"   // some of the container's names are parked
	phaseParked    = "parked"    // all are; what is in / besides what stays is the image's
	phaseRestoring = "restoring" // nothing of the image is in / any more
)

// A journal says, to whoever comes after this process, what was moved. It is a
// file of JSON lines that is only appended to; a half line at its end is ignored.
type journal struct {
	path  string
	f     *os.File
	state state
}

type state struct {
	Phase string
	// Stays has the paths, relative to /, that could not be moved: nil for a
	// mount point, the attributes to give back for a directory.
	Stays map[string]*attrs
	// Volumes maps a mount point that was parked inside itself to the name
	// of the directory in it that holds its content.
	Volumes map[string]volume
	// Extra are files outside the root to be removed, like secrets.
	Extra []string
}

type volume struct {
	Aside string `json:"aside"`
	Attrs *attrs `json:"attrs"`
	Ready bool   `json:"ready"` // all content is aside
}

// A line is one entry of the journal.
type line struct {
	Phase  string  `json:"phase,omitempty"`
	Stay   *string `json:"stay,omitempty"`
	Mount  bool    `json:"mount,omitempty"`
	Attrs  *attrs  `json:"attrs,omitempty"`
	Volume string  `json:"volume,omitempty"`
	Aside  string  `json:"aside,omitempty"`
	Ready  bool    `json:"ready,omitempty"`
	Gone   bool    `json:"gone,omitempty"`
	Extra  string  `json:"extra,omitempty"`
}

// openJournal reads the journal in the work directory, if there is one.
func openJournal(work string) (*journal, error) {
	j := &journal{path: filepath.Join(work, "journal")}
	j.state = state{Stays: make(map[string]*attrs), Volumes: make(map[string]volume)}
	f, err := os.Open(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var l line
		if json.Unmarshal(sc.Bytes(), &l) != nil {
			break // cut off in the middle: what it announced was not done yet
		}
		j.state.apply(&l)
	}
	return j, sc.Err()
}

func (s *state) apply(l *line) {
	if l.Phase != "" {
		s.Phase = l.Phase
	}
	if l.Stay != nil {
		if l.Mount {
			s.Stays[*l.Stay] = nil
		} else {
			s.Stays[*l.Stay] = l.Attrs
		}
	}
	if l.Volume != "" {
		if l.Gone {
			delete(s.Volumes, l.Volume)
		} else {
			s.Volumes[l.Volume] = volume{Aside: l.Aside, Attrs: l.Attrs, Ready: l.Ready}
		}
	}
	if l.Extra != "" {
		s.Extra = append(s.Extra, l.Extra)
	}
}

func (j *journal) write(l line) error {
	if j.f == nil {
		f, err := os.OpenFile(j.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return fmt.Errorf("write journal: %w", err)
		}
		j.f = f
	}
	b, err := json.Marshal(l)
	if err == nil {
		_, err = j.f.Write(append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	j.state.apply(&l)
	return nil
}

func (j *journal) phase(p string) error          { return j.write(line{Phase: p}) }
func (j *journal) stay(p string, a *attrs) error { return j.write(line{Stay: &p, Attrs: a}) }
func (j *journal) stayMount(p string) error      { return j.write(line{Stay: &p, Mount: true}) }
func (j *journal) extra(p string) error          { return j.write(line{Extra: p}) }
func (j *journal) volume(p string, v volume) error {
	return j.write(line{Volume: p, Aside: v.Aside, Attrs: v.Attrs, Ready: v.Ready})
}
func (j *journal) volumeGone(p string) error { return j.write(line{Volume: p, Gone: true}) }

// end removes the journal: everything is as it was.
func (j *journal) end() error {
	for _, p := range j.state.Extra {
		_ = os.RemoveAll(p)
	}
	if j.f != nil {
		_ = j.f.Close()
		j.f = nil
	}
	j.state = state{Stays: make(map[string]*attrs), Volumes: make(map[string]volume)}
	if err := os.Remove(j.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end journal: %w", err)
	}
	return nil
}
