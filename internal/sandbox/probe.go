// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package sandbox

// A Probe is what a place allows, found by trying wherever trying is harmless.
// It is data, for people and for JSON.
type Probe struct {
	OS     string `json:"os"`
	Arch   string `json:"arch"`
	Kernel string `json:"kernel,omitempty"`
	// Runtime is what seems to have started this container, "" for none.
	Runtime string `json:"runtime,omitempty"`

	UID           int      `json:"uid"`
	GID           int      `json:"gid"`
	UserNamespace bool     `json:"userNamespace"` // ids here are not those of the machine
	CapMask       string   `json:"capMask,omitempty"`
	Capabilities  []string `json:"capabilities"`
	NoNewPrivs    bool     `json:"noNewPrivs"`
	Seccomp       string   `json:"seccomp,omitempty"` // "off", "strict" or "filter"
	AppArmor      string   `json:"appArmor"`          // profile, or "off"
	SELinux       string   `json:"seLinux"`           // label, or "off"

	Abilities []Ability `json:"abilities"`
	Root      RootFS    `json:"root"`
	Parking   Parking   `json:"parking"`
	// InView are the mounts that a command run in place sees at their paths.
	InView []string `json:"inView"`

	CPUs        int   `json:"cpus"`
	MemoryLimit int64 `json:"memoryLimit"` // bytes, 0 if none is known
	// OOMGroup tells whether running out of memory ends the whole container;
	// nil if it is not known.
	OOMGroup *bool `json:"oomGroup"`
}

// An Ability is something that was tried.
type Ability struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Why  string `json:"why,omitempty"` // the refusal
}

// A RootFS is the file system at /.
type RootFS struct {
	Type     string `json:"type,omitempty"`
	ReadOnly bool   `json:"readOnly"` // mounted so
	Writable bool   `json:"writable"` // by this user
	Free     int64  `json:"free"`     // bytes
	// TrustsCtime tells whether a changed file always shows by its ctime; where
	// it does not, contents are compared after each RUN. Nil if not known.
	TrustsCtime *bool  `json:"trustsCtime"`
	CtimeWhy    string `json:"ctimeWhy,omitempty"`
}

// A Parking is what moving the container's own files aside would do.
type Parking struct {
	Known   bool     `json:"known"`
	Why     string   `json:"why,omitempty"` // if it is not known
	Renames []string `json:"renames"`       // top-level names that are renamed
	// Copies are directories that came with the container's image: the kernel
	// copies what they hold.
	Copies []string `json:"copies"`
	// CopyFiles and CopyBytes are the most that is copied.
	CopyFiles int64 `json:"copyFiles"`
	CopyBytes int64 `json:"copyBytes"`
	// Stays are top-level names that do not move: mount points and hako's own.
	Stays []string `json:"stays"`
}

// ProbeOptions say what a probe may use.
type ProbeOptions struct {
	// WorkDir is hako's own directory; a probe makes a directory there and
	// removes it.
	WorkDir string
	// Env looks up an environment variable.
	Env func(name string) string
}
