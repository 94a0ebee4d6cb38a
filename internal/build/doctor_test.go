// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package build

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver/pb"
)

// What doctor lists as refused must be what is refused, and by that name.
func TestDoctorListsWhatIsRefused(t *testing.T) {
	t.Parallel()
	other := &pb.Platform{OS: "linux", Architecture: "arm64"}
	if runtime.GOARCH == "arm64" {
		other.Architecture = "amd64"
	}
	here := &pb.Platform{OS: "linux", Architecture: runtime.GOARCH}
	tests := []struct {
		op       *pb.ExecOp
		platform *pb.Platform
		listed   string // "" if it runs
	}{
		{&pb.ExecOp{Meta: &pb.Meta{}}, here, ""},
		{&pb.ExecOp{Meta: &pb.Meta{}, Network: pb.NetMode_NONE}, here, "RUN --network=none"},
		{&pb.ExecOp{Meta: &pb.Meta{}, Security: pb.SecurityMode_INSECURE}, here, "RUN --security=insecure"},
		{&pb.ExecOp{Meta: &pb.Meta{}, Mounts: []*pb.Mount{{TmpfsOpt: &pb.TmpfsOpt{Size: 1}}}}, here, "RUN --mount=type=tmpfs,size="},
		{&pb.ExecOp{Meta: &pb.Meta{}, Mounts: []*pb.Mount{{TmpfsOpt: &pb.TmpfsOpt{}}}}, here, ""},
		{&pb.ExecOp{Meta: &pb.Meta{}}, other, "RUN for another platform"},
		{&pb.ExecOp{Meta: &pb.Meta{Hostname: "x"}}, here, "--hostname"},
		{&pb.ExecOp{Meta: &pb.Meta{Ulimit: []*pb.Ulimit{{Name: "nofile", Soft: 1, Hard: 1}}}}, here, "--ulimit"},
		{&pb.ExecOp{Meta: &pb.Meta{}, Mounts: []*pb.Mount{{Dest: "/dev/shm", TmpfsOpt: &pb.TmpfsOpt{Size: 1}}}}, here, "--shm-size"},
	}
	listed := map[string]bool{}
	for _, name := range inPlaceExcept() {
		listed[name] = true
	}
	for _, tt := range tests {
		err := unsupported(tt.op, tt.platform, isolationInPlace)
		if (err != nil) != (tt.listed != "") {
			t.Errorf("%q: %v", tt.listed, err)
			continue
		}
		if err == nil {
			continue
		}
		if !listed[tt.listed] {
			t.Errorf("doctor does not list %q", tt.listed)
		}
		delete(listed, tt.listed)
		name, _, _ := strings.Cut(tt.listed, " another")
		if !strings.HasPrefix(err.Error(), name) {
			t.Errorf("error %q does not begin with %q", err, name)
		}
	}
	doc, err := os.ReadFile("../../docs/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range inPlaceExcept() {
		if !strings.Contains(string(doc), "`"+name+"`") && !strings.Contains(string(doc), "**"+name) {
			t.Errorf("docs/differences.md does not name %q", name)
		}
	}
	for name := range listed {
		t.Errorf("doctor lists %q, which nothing refuses", name)
	}
}
