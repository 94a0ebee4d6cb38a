// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Command etcd is etcd's server. Its own main package would build under the name "v3".
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
