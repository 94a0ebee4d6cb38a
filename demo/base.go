// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// greeting is the file that the example is about.
const greeting = "greeting.txt"

// base is the image the example starts from.
type base struct {
	what string
	run  string // the RUN line that works on it
}

// shout is the one tool of a base without busybox.
const shout = `package main

import (
	"os"
	"strings"
)

func main() {
	in, err := os.ReadFile(os.Args[1])
	if err == nil {
		err = os.WriteFile(os.Args[2], []byte(strings.ToUpper(string(in))), 0o644)
	}
	if err != nil {
		println(err.Error())
		os.Exit(1)
	}
}
`

// pushBase makes an image of the machine's busybox, or else of a Go program, and
// pushes it as base:1.
func pushBase(ctx context.Context, dir, host string) (base, error) {
	var b base
	var tarBytes []byte
	var err error
	if path := staticBusybox(); path != "" {
		b = base{"made of " + path, "RUN tr a-z A-Z < greeting.txt > /out.txt"}
		tarBytes, err = layerOf(path, "busybox", "sh", "tr", "cat", "ls")
	} else {
		b = base{"made of a Go program", `RUN ["/bin/shout", "greeting.txt", "/out.txt"]`}
		var path string
		if path, err = compile(ctx, dir, "shout", shout); err == nil {
			tarBytes, err = layerOf(path, "shout")
		}
	}
	if err != nil {
		return b, err
	}
	return b, pushLayer(ctx, host, tarBytes)
}

// staticBusybox returns the path of a busybox that needs no libraries, or "".
func staticBusybox() string {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return ""
	}
	f, err := elf.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if libs, err := f.ImportedLibraries(); err != nil || len(libs) > 0 {
		return ""
	}
	return path
}

func compile(ctx context.Context, dir, prog, text string) (string, error) {
	src, bin := filepath.Join(dir, prog+".go"), filepath.Join(dir, prog)
	if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, src)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile %s: %w: %s", prog, err, out)
	}
	return bin, nil
}

// layerOf returns a tar with the program as /bin/NAME and links to it.
func layerOf(path, prog string, links ...string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	headers := []*tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/" + prog, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(data))},
	}
	for _, l := range links {
		headers = append(headers, &tar.Header{Name: "bin/" + l, Typeflag: tar.TypeSymlink, Linkname: prog, Mode: 0o777})
	}
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write(data); err != nil {
				return nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func pushLayer(ctx context.Context, host string, tarBytes []byte) error {
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(tarBytes)), nil
	})
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Env: []string{"PATH=/bin"}}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return err
	}
	ref, err := name.ParseReference(host+"/base:1", name.Insecure)
	if err != nil {
		return err
	}
	return remote.Write(ref, img, remote.WithContext(ctx))
}

// writeContext writes the example: a stage that makes a file and one that takes it.
func writeContext(dir, host string, b base, canRun bool) error {
	run := b.run
	if !canRun {
		run = "COPY greeting.txt /out.txt"
	}
	dockerfile := fmt.Sprintf(`# A stage that makes something …
FROM %[1]s/base:1 AS make
WORKDIR /src
COPY . .
%[2]s

# … and one that takes only that.
FROM scratch
LABEL org.opencontainers.image.title="hako demo"
COPY --from=make --chmod=0644 /out.txt /greeting.txt
COPY <<EOT /etc/motd
built by hako
EOT
`, host, run)
	for file, text := range map[string]string{
		"Dockerfile":    dockerfile,
		".dockerignore": "Dockerfile\n",
		greeting:        "hello from a container nobody was privileged to build\n",
	} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }
