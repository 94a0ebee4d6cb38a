// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hako/internal/build"
	"hako/internal/sandbox"
)

func ptr[T any](v T) *T { return &v }

func podDiagnosis() *build.Diagnosis {
	return &build.Diagnosis{
		Version: "1.0",
		Probe: &sandbox.Probe{
			OS: "linux", Arch: "amd64", Kernel: "6.1.112", Runtime: "Kubernetes pod, containerd",
			CapMask: podCapabilities, Capabilities: make([]string, 14), Seccomp: "filter", AppArmor: "cri-containerd", SELinux: "off",
			Abilities: []sandbox.Ability{{Name: "chroot", OK: true}, {Name: "mknod", OK: true}, {Name: "mount", Why: "EPERM"}},
			Root:      sandbox.RootFS{Type: "overlay", Writable: true, Free: 12 << 30, TrustsCtime: ptr(true)},
			Parking: sandbox.Parking{
				Known: true, Renames: []string{"/var", "/run"}, Copies: []string{"/etc", "/usr"}, CopyFiles: 7, CopyBytes: 12_000_000,
			},
			InView: []string{"/dev", "/proc"}, MemoryLimit: 2 << 30, OOMGroup: ptr(true), CPUs: 2,
		},
		Runs:      true,
		Sandboxes: []build.SandboxChoice{{Name: "namespace", Why: "not in this version"}, {Name: "inplace", OK: true, Chosen: true}},
		Except:    []string{"RUN --network=none"},
		Registries: []build.RegistryReport{{
			Ref: "r.test/a", Host: "r.test", Scheme: "https", Account: "not signed in", Pull: "yes", Push: "no: denied (403)",
		}},
	}
}

func TestDiagnosisText(t *testing.T) {
	t.Parallel()
	const want = `hako 1.0 linux/amd64 · kernel 6.1.112 · Kubernetes pod, containerd
user       0:0, not in a user namespace
rights     capabilities a80425fb (the runtime's default 14)
guards     seccomp filter · AppArmor cri-containerd · SELinux off
may        chroot mknod
may not    mount (EPERM)
root       overlay, writable, 12.0 GiB free
           shows every change (ctime): files are compared by their metadata after a RUN
parking    2 renames; /etc /usr came with the container's image and cannot be renamed (EXDEV):
           at most 7 files, 12 MB are copied before the first RUN
in view    /dev /proc stay visible to RUN
memory     limit 2048 MiB; running out of it kills the whole container (memory.oom.group=1) · 2 CPUs
sandbox    namespace  no   not in this version
           inplace    yes  chosen
builds     everything except RUN --network=none; RUN steps one at a time
registry   r.test (from -d): https, not signed in
           pull yes
           push no: denied (403)
`
	if diff := cmp.Diff(want, diagnosisText(podDiagnosis())); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestDiagnosisWithoutRun(t *testing.T) {
	t.Parallel()
	d := podDiagnosis()
	d.Runs, d.Remedies = false, []string{"securityContext.runAsUser: 0 (with default capabilities)"}
	d.Parking = sandbox.Parking{Why: "user 1000, which is not root, cannot own an image's files"}
	got := diagnosisText(d)
	for _, want := range []string{
		"parking    not possible: user 1000", "builds     Dockerfiles without RUN", "any one of these", "runAsUser: 0",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if strings.Contains(got, "in view") {
		t.Errorf("nothing can be in view of what cannot run:\n%s", got)
	}
}

func TestDiagnosisJSON(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := writeDiagnosis(&b, podDiagnosis(), "json"); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Kernel    string
		Abilities []sandbox.Ability
		Parking   sandbox.Parking
		Runs      bool
	}
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Kernel != "6.1.112" || len(got.Abilities) != 3 || len(got.Parking.Copies) != 2 || !got.Runs {
		t.Errorf("got %+v of\n%s", got, b.String())
	}
}
