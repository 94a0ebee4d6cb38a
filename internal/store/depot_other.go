// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package store

import "os"

func tryLock(*os.File) lockState { return noLocks }
