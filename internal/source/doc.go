// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

// Package source turns what a build starts from into read-only trees and
// layers: a directory as a build context ([Local]), a file from a web server
// ([FetchHTTP]), an image in an OCI layout ([OpenLayout]).
//
// Nothing here takes a path of the host: directories come as a [tree.FS].
package source
