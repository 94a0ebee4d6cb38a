// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package source

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// In a process whose root is that of a hostile image, a Dialer neither opens
// nor looks at any of its files.
func TestDialerOpensNoFile(t *testing.T) {
	const child = "HAKO_TEST_HOSTILE_ROOT"
	if root := os.Getenv(child); root != "" {
		inHostileRoot(t, root)
		return
	}
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root for chroot")
	}
	root := t.TempDir()
	for name, text := range map[string]string{
		"hosts": "127.6.6.6 evil.test good.test localhost\n", "resolv.conf": "nameserver 127.6.6.6\n",
		"nsswitch.conf": "hosts: files\n", "services": "https 666/tcp\n", "gai.conf": "", "host.conf": "",
	} {
		p := filepath.Join(root, "etc", name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestDialerOpensNoFile$", "-test.v")
	cmd.Env = append(os.Environ(), child+"="+root)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func inHostileRoot(t *testing.T, root string) {
	s := serve(t, zone(map[string]string{"good.test. A": "127.0.0.1"}))
	d := dialer("127.0.0.1 hosts.test", "", s)
	watch, err := unix.InotifyInit1(unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, filepath.Join(root, "etc"), unix.IN_OPEN|unix.IN_ACCESS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chroot(root); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(s.addr.String())
	for _, host := range []string{"127.0.0.1", "localhost", "hosts.test", "good.test"} {
		c, err := d.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port))
		if err != nil {
			t.Errorf("dial %s: %v", host, err)
			continue
		}
		if got := c.RemoteAddr().String(); got != s.addr.String() {
			t.Errorf("%s led to %s", host, got)
		}
		c.Close()
	}
	if got := lookup(t, d, "evil.test"); got != "error: lookup evil.test: no such host" {
		t.Errorf("evil.test: %s", got)
	}
	if c, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:https"); err == nil {
		c.Close()
	}
	if n, err := unix.Read(watch, make([]byte, 4096)); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a file of the root was opened (%d bytes of events, %v)", n, err)
	}
	// The watch does see what it is for: the standard resolver.
	_, _ = (&net.Resolver{PreferGo: true}).LookupHost(t.Context(), "evil.test")
	if _, err := unix.Read(watch, make([]byte, 4096)); err != nil {
		t.Errorf("the watch sees nothing: %v", err)
	}
}
