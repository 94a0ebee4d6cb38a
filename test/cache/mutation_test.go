// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package cache

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// A model is a random Dockerfile of which it is known what each step makes, so
// that it can be said which steps a change makes run again.
type model struct {
	rng    *rand.Rand
	bases  []string // of the stages
	stages [][]*instr
	files  map[string]string
	args   map[string]string // defaults of ARGs by name
	serial int
	// known are the content keys of steps that ran.
	known map[string]bool
}

// An instr is one instruction.
type instr struct {
	kind string // copy, run, from, arg, workdir
	id   string
	file string // that a copy takes
	arg  string // that a run prints or a copy goes by
	from int    // stage that is copied from
	// lossy runs print the same whatever they read.
	lossy bool
	note  string // a comment-like word in the command
	line  int
}

func newModel(seed uint64) *model {
	m := &model{
		rng: rand.New(rand.NewPCG(seed, 7)), files: map[string]string{}, args: map[string]string{}, known: map[string]bool{},
	}
	for range 2 + m.rng.IntN(2) {
		m.addStage()
	}
	return m
}

func (m *model) id(prefix string) string {
	m.serial++
	return fmt.Sprintf("%s%d", prefix, m.serial)
}

func (m *model) addStage() {
	n := len(m.stages)
	m.bases = append(m.bases, "one")
	st := []*instr{{kind: "workdir", id: m.id("w")}}
	for range 2 + m.rng.IntN(3) {
		switch k := m.rng.IntN(5); {
		case k == 0:
			name := m.id("A")
			m.args[name] = "value"
			st = append(st, &instr{kind: "arg", id: name}, &instr{kind: "run", id: m.id("r"), arg: name})
		case k == 1 && n > 0:
			st = append(st, &instr{kind: "from", id: m.id("f"), from: m.rng.IntN(n)})
		case k <= 3:
			name := m.id("dir/file")
			m.files[name] = "content\n"
			st = append(st, &instr{kind: "copy", id: m.id("c"), file: name})
		default:
			st = append(st, &instr{kind: "run", id: m.id("r"), lossy: m.rng.IntN(2) == 0})
		}
	}
	// What a stage comes to, for others to copy.
	st = append(st, &instr{kind: "run", id: m.id("r"), lossy: m.rng.IntN(2) == 0})
	m.stages = append(m.stages, st)
}

// text returns the Dockerfile and notes the lines.
func (m *model) text() string {
	var b strings.Builder
	line := 0
	put := func(format string, args ...any) {
		line++
		fmt.Fprintf(&b, format+"\n", args...)
	}
	for n, st := range m.stages {
		put("FROM REG/base:%s AS s%d", m.bases[n], n)
		for _, i := range st {
			put("%s", m.instruction(n, i))
			i.line = line
		}
	}
	// All stages count.
	put("FROM scratch")
	for n := range m.stages {
		put("COPY --from=s%d /out /s%d", n, n)
	}
	return b.String()
}

func (m *model) instruction(_ int, i *instr) string {
	switch i.kind {
	case "workdir":
		return "WORKDIR /" + i.id
	case "arg":
		return "ARG " + i.id + "=" + m.args[i.id]
	case "copy":
		return "COPY " + i.file + " /src/" + i.id
	case "from":
		return fmt.Sprintf("COPY --from=s%d /out /src/%s", i.from, i.id)
	}
	what := "cat $(find /src -type f | sort)"
	switch {
	case i.lossy:
		what = "echo same"
	case i.arg != "":
		what = "echo $" + i.arg
	}
	return fmt.Sprintf("RUN mkdir -p /out /src; (%s) > /out/%s; : %s", what, i.id, i.note)
}

// A state is what a stage's tree has come to.
type state struct {
	chain string   // content of all layers
	src   []string // contents below /src
	out   []string // files below /out with contents
	env   []string
}

// expect returns the lines that have to run, and notes that they did.
func (m *model) expect() []string {
	var lines []string
	states := make([]state, len(m.stages))
	check := func(key string, line int) {
		if !m.known[key] {
			m.known[key] = true
			lines = append(lines, fmt.Sprint(line))
		}
	}
	line := 0
	for n, st := range m.stages {
		s := state{chain: "base " + m.bases[n]}
		line++
		for _, i := range st {
			line++
			made := ""
			text := m.instruction(n, i)
			switch i.kind {
			case "arg":
				s.env = append(s.env, i.id+"="+m.args[i.id])
				continue
			case "workdir":
				made = i.id
			case "copy":
				made = i.id + m.files[i.file]
				s.src = append(s.src, made)
			case "from":
				made = i.id + strings.Join(states[i.from].out, ";")
				s.src = append(s.src, made)
			case "run":
				switch {
				case i.lossy:
					made = i.id + "same"
				case i.arg != "":
					made = i.id + m.args[i.arg]
				default:
					made = i.id + strings.Join(s.src, ";")
				}
				s.out = append(s.out, made)
			}
			key := s.chain + "|" + text
			if i.kind == "run" {
				key += "|" + strings.Join(s.env, ",")
			} else {
				key += "|" + made
			}
			check(key, line)
			s.chain += "|" + made
		}
		states[n] = s
	}
	line++
	chain := ""
	for n := range m.stages {
		line++
		made := fmt.Sprint(n, states[n].out)
		check(chain+"|final|"+made, line)
		chain += made
	}
	return lines
}

// mutate changes one thing and returns what a reason has to name.
func (m *model) mutate() (names string) {
	for {
		st := m.stages[m.rng.IntN(len(m.stages))]
		i := st[m.rng.IntN(len(st))]
		switch i.kind {
		case "copy":
			m.files[i.file] += "more\n"
			return i.file
		case "arg":
			m.args[i.id] += "x"
			return i.id
		case "run":
			old := m.instruction(0, i)
			i.note += "n"
			return old[:40]
		case "workdir":
			if m.rng.IntN(8) == 0 {
				n := slices.IndexFunc(m.stages, func(s []*instr) bool { return s[0] == i })
				m.bases[n] = map[string]string{"one": "two", "two": "one"}[m.bases[n]]
				return "base:" + m.bases[n]
			}
		}
	}
}

// TestMutations: after a change exactly those steps run again whose inputs are
// others now, and the reason names what changed.
func TestMutations(t *testing.T) {
	t.Parallel()
	named, reasons := 0, 0
	for seed := range uint64(20) {
		w := newWorld(t)
		w.base("one", "1")
		w.base("two", "2")
		m := newModel(seed)
		w.write(map[string]string{"Dockerfile": m.text()})
		w.write(m.files)
		w.must(w.build())
		m.expect()
		for range 5 {
			what := m.mutate()
			w.write(map[string]string{"Dockerfile": m.text()})
			w.write(m.files)
			b := w.must(w.build())
			want := m.expect()
			if got := b.misses(); !slices.Equal(got, want) {
				t.Fatalf("seed %d, %s changed: lines %v ran, want %v\n%s\n%s", seed, what, got, want, m.text(), b.log)
			}
			if len(want) == 0 {
				continue // back to what was there before
			}
			reasons++
			if strings.Contains(b.why(), what) {
				named++
			} else {
				t.Logf("seed %d: %q is not named:\n%s", seed, what, b.why())
			}
		}
		if got, want := w.must(w.build()).digest, w.uncached(); got != want {
			t.Errorf("seed %d: the cached image is %s, the one built without a cache %s", seed, got, want)
		}
	}
	t.Logf("%d of %d reasons name what changed", named, reasons)
	if reasons < 80 || named*100 < reasons*95 {
		t.Errorf("%d of %d reasons name what changed, want 95 %%", named, reasons)
	}
}
