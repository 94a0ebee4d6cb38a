// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package keychain

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// AddAuth returns a docker config.json with an entry for host, all else as it
// was; old may be empty. Other spellings of the host go, so that the new entry
// is the one that is found. The note, if any, says what keeps it from being used.
func AddAuth(old []byte, source, host, user, password string) (b []byte, note string, err error) {
	if strings.Contains(user, ":") {
		return nil, "", errors.New("a user's name cannot have a colon in it")
	}
	doc, auths := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if len(bytes.TrimSpace(old)) > 0 {
		if err := json.Unmarshal(old, &doc); err != nil {
			return nil, "", parseError(old, source, err)
		}
	}
	if doc == nil { // null
		doc = map[string]json.RawMessage{}
	}
	if raw := doc["auths"]; raw != nil {
		if err := json.Unmarshal(raw, &auths); err != nil {
			return nil, "", parseError(raw, source, err)
		}
	}
	if auths == nil { // null
		auths = map[string]json.RawMessage{}
	}
	key := normalizeKey(host)
	for k := range auths {
		if normalizeKey(k) == key {
			delete(auths, k)
		}
	}
	d, err := ParseDockerConfig(orEmpty(old), source)
	if err != nil {
		return nil, "", err
	}
	if h := d.helpers[key]; h != "" {
		note = fmt.Sprintf("note: credHelpers of %s names docker-credential-%s for the host, which is asked instead", source, h)
	}
	if key == name.DefaultRegistry {
		key = authn.DefaultAuthKey // as docker login spells it
	}
	entry := struct {
		Auth string `json:"auth"`
	}{base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}
	if auths[key], err = json.Marshal(entry); err != nil {
		return nil, "", err
	}
	if doc["auths"], err = json.Marshal(auths); err != nil {
		return nil, "", err
	}
	b, err = json.MarshalIndent(doc, "", "\t")
	return append(b, '\n'), note, err
}

func orEmpty(b []byte) []byte {
	if len(bytes.TrimSpace(b)) == 0 {
		return []byte("{}")
	}
	return b
}
