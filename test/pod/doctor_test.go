// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package pod

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"hako/test/rig"
)

// doctorReport is what the tests read of doctor's JSON.
type doctorReport struct {
	CapMask   string
	Seccomp   string
	Runs      bool
	Remedies  []string
	InView    []string
	Abilities []struct {
		Name string
		OK   bool
		Why  string
	}
	Root struct {
		Type        string
		Writable    bool
		TrustsCtime *bool
	}
	Parking struct {
		Known                  bool
		Renames, Copies, Stays []string
		CopyFiles              int
	}
	Registries []struct{ Scheme, Pull, Push string }
}

func (w *world) doctor(t *testing.T, s rig.PodSpec, flags ...string) (rig.PodResult, doctorReport) {
	t.Helper()
	s.Command = append([]string{"/kaniko/executor", "doctor"}, flags...)
	id, before := w.create(t, s)
	text, err := w.pod.Start(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if text.Exit != 0 {
		t.Fatalf("exit status %d\n%s", text.Exit, text.Stderr)
	}
	w.asFound(t, id, before)
	s.Command = append(s.Command, "--format=json")
	res, err := w.pod.Run(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	var r doctorReport
	if err := json.Unmarshal([]byte(res.Stdout), &r); err != nil {
		t.Fatalf("%v\n%s%s", err, res.Stdout, res.Stderr)
	}
	return text, r
}

// says fails the test unless each of the lines begins a line of the report;
// runs of spaces count as one.
func says(t *testing.T, text string, lines ...string) {
	t.Helper()
	var got []string
	for l := range strings.Lines(text) {
		got = append(got, strings.Join(strings.Fields(l), " "))
	}
	for _, want := range lines {
		if !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, want) }) {
			t.Errorf("no line begins %q in\n%s", want, text)
		}
	}
}

func TestDoctor(t *testing.T) {
	w := start(t, false)
	image := w.scratch(t)
	t.Run("pod", func(t *testing.T) { w.doctorInPod(t, image) })
	t.Run("user", func(t *testing.T) { w.doctorWithoutRoot(t, image) })
	t.Run("build as user", func(t *testing.T) { w.buildsWithoutRoot(t, image) })
	t.Run("read-only", func(t *testing.T) { w.doctorReadOnly(t, image) })
	t.Run("debian", func(t *testing.T) {
		if testing.Short() {
			t.Skip("skipped: a Debian image, with -short")
		}
		rig.Require(t, rig.NeedMmdebstrap)
		debian, err := w.pod.DebianPod(t.Context(), rig.DebianMinimal)
		if err != nil {
			t.Fatal(err)
		}
		w.doctorInDebian(t, debian)
	})
}

func (w *world) doctorInPod(t *testing.T, image string) {
	s, _ := w.spec(t, image, w.files(t, nil), true)
	s.Mounts = append(s.Mounts, rig.Mount{Source: w.files(t, map[string]string{"config.json": "{}"}), Target: "/kaniko/.docker", ReadOnly: true})
	text, r := w.doctor(t, s, "--destination="+w.Registry+"/result:1", "--insecure-registry="+w.Registry)
	says(t, text.Stdout,
		"user 0:0, not in a user namespace",
		"rights capabilities a80425fb (the runtime's default 14)",
		"guards seccomp filter",
		"may chroot mknod chown setxattr setcap",
		"may not mount (EPERM) unshare(mount) (EPERM) unshare(user) (EPERM)",
		"root overlay, writable, ",
		"shows every change (ctime)",
		"inplace yes chosen",
		"builds everything except RUN --security=insecure, RUN --network=none, ",
		"registry "+w.Registry+" (from -d): http, not signed in",
		"pull yes", "push yes",
	)
	if !r.Runs || !r.Parking.Known || len(r.Parking.Copies) > 0 && r.Parking.CopyFiles > 10 {
		t.Errorf("in an image of hako alone next to nothing is copied: %+v", r.Parking)
	}
	for _, m := range []string{"/proc", "/sys", "/dev", "/workspace", "/kaniko/.docker"} {
		if !slices.Contains(r.InView, m) {
			t.Errorf("%s is not said to stay in view: %q", m, r.InView)
		}
	}
	if !slices.Contains(r.Parking.Stays, "/kaniko") {
		t.Errorf("hako's own directory is not said to stay: %q", r.Parking.Stays)
	}
}

func (w *world) doctorWithoutRoot(t *testing.T, image string) {
	s, _ := w.spec(t, image, w.files(t, nil), true)
	s.Args = append(s.Args, "--user=1000:1000")
	text, r := w.doctor(t, s)
	says(t, text.Stdout,
		"user 1000:1000",
		"may not chroot (EPERM) ",
		"root overlay, not writable for this user, ",
		"parking not possible: user 1000, which is not root",
		"inplace no user 1000, which is not root",
		"builds Dockerfiles without RUN",
		"for RUN any one of these is enough:",
		"securityContext.runAsUser: 0",
	)
	if r.Runs || len(r.Remedies) != 1 {
		t.Errorf("runs %v, remedies %q; want no, and the one", r.Runs, r.Remedies)
	}
}

func (w *world) doctorReadOnly(t *testing.T, image string) {
	s, _ := w.spec(t, image, w.files(t, nil), true)
	s.Args = append(s.Args, "--read-only", "--read-only-tmpfs=false")
	text, r := w.doctor(t, s)
	says(t, text.Stdout, "root overlay, read-only, ", "builds Dockerfiles without RUN", "securityContext.readOnlyRootFilesystem: false")
	if r.Runs {
		t.Error("RUN is said to work on a read-only root")
	}
}

// buildsWithoutRoot: file operations need no rights; the first RUN is refused
// before anything is done, with the settings that would help.
func (w *world) buildsWithoutRoot(t *testing.T, image string) {
	bctx := w.files(t, map[string]string{"Dockerfile": "FROM base.test/busybox\nCOPY a.txt /\nWORKDIR /w\n", "a.txt": "a\n"})
	s, _ := w.spec(t, image, bctx, true)
	s.Args = append(s.Args, "--user=1000:1000")
	res, err := w.pod.Run(t.Context(), s)
	if err != nil || res.Exit != 0 || !strings.Contains(res.Stdout, "@sha256:") {
		t.Errorf("without RUN: exit %d, %v, %q\n%s", res.Exit, err, res.Stdout, res.Stderr)
	}
	w.rewrite(t, bctx, "FROM base.test/busybox\nCOPY a.txt /\nRUN true\n")
	res, err = w.pod.Run(t.Context(), s)
	if err != nil || res.Exit != 1 {
		t.Errorf("with RUN: exit %d, %v", res.Exit, err)
	}
	says(t, res.Stderr, "securityContext.runAsUser: 0", "error building image: Dockerfile:3: ")
}

// doctorInDebian: what came with the image cannot be renamed, and doctor knows
// without having tried for real.
func (w *world) doctorInDebian(t *testing.T, image string) {
	s, _ := w.spec(t, image, w.files(t, nil), true)
	text, r := w.doctor(t, s)
	for _, dir := range []string{"/usr", "/etc", "/var"} {
		if !slices.Contains(r.Parking.Copies, dir) {
			t.Errorf("%s is not said to be copied: %+v", dir, r.Parking)
		}
	}
	if r.Parking.CopyFiles < 1000 {
		t.Errorf("%d files to copy, want thousands", r.Parking.CopyFiles)
	}
	if !slices.Contains(r.InView, "/etc/hosts") || slices.Contains(r.InView, "/etc") {
		t.Errorf("in view: %q, want /etc/hosts but not /etc", r.InView)
	}
	says(t, text.Stdout, "inplace yes chosen")
}
