// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
)

// helperNotFound is what helper programs print when they know of no
// credentials (docker-credential-helpers, credentials/error.go).
const helperNotFound = "credentials not found in native keychain"

// helperAnswer is what "docker-credential-NAME get" prints.
type helperAnswer struct {
	ServerURL string
	Username  string
	Secret    string
}

// ParseHelper reads what a helper program printed.
func ParseHelper(out []byte) (user, secret string, err error) {
	var a helperAnswer
	if json.Unmarshal(out, &a) != nil {
		return "", "", errors.New("it printed no JSON") // what it printed may be a secret
	}
	if a.Secret == "" {
		return "", "", ErrNoCredentials
	}
	return a.Username, a.Secret, nil
}

// HelperFailure returns the error of a helper program that ended with err.
func HelperFailure(out []byte, err error) error {
	text := strings.TrimSpace(string(out))
	if text == helperNotFound {
		return ErrNoCredentials
	}
	if strings.ContainsAny(text, "{\n") || text == "" || len(text) > 200 {
		return err
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, text)
	return fmt.Errorf("%w: %s", err, text)
}

// HelperNames are the names under which helper programs for clouds are known,
// docker-credential- left out, with the source of BuiltIn that answers for each.
func HelperNames() map[string]string {
	return map[string]string{"ecr-login": "ecr", "gcr": "google", "gcloud": "google", "acr-env": "acr"}
}

// WriteHelper returns what a helper program prints for a credential, whose user
// "<token>" marks an identity token.
func WriteHelper(c *Credential, server string) ([]byte, error) {
	if c.isEmpty() {
		return nil, ErrNoCredentials
	}
	a := helperAnswer{ServerURL: server, Username: c.cfg.Username, Secret: c.cfg.Password}
	if c.cfg.IdentityToken != "" {
		a.Username, a.Secret = tokenUser, c.cfg.IdentityToken
	}
	return json.Marshal(a)
}

// HelperNotFound is what a helper program prints when it knows of none.
const HelperNotFound = helperNotFound
