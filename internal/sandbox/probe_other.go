// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package sandbox

import (
	"context"
	"os"
	"runtime"
)

// Examine tells what can be told without Linux.
func Examine(context.Context, ProbeOptions) *Probe {
	return &Probe{
		OS: runtime.GOOS, Arch: runtime.GOARCH, UID: os.Getuid(), GID: os.Getgid(), AppArmor: "off", SELinux: "off",
		Parking: Parking{Why: "commands run in place on Linux only"}, CPUs: runtime.GOMAXPROCS(0),
	}
}
