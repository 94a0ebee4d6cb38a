// Copyright The hako authors.
// SPDX-License-Identifier: Apache-2.0

package registry

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"

	"hako/internal/keychain"
)

// Explain tells who asked, what that account lacks, and what to do.
func (e *Error) Explain() string {
	if c, ok := errors.AsType[*keychain.ConfigError](e.Err); ok {
		return c.Explain()
	}
	switch {
	case e.Is(ErrDenied):
		return e.explainDenied()
	case e.Is(ErrRateLimited):
		return e.who() + " try     sign in, if you are not: registries limit those without a name most; or wait, or pull from a mirror"
	case e.Op == "push" && isImmutableTag(e):
		return " why     the registry keeps tags as they are, and this one is there with another image\n" +
			" try     another tag, or allow the tag to be set again in the registry"
	case e.Is(ErrNotFound):
		return e.explainAbsent()
	case errors.Is(e.Err, ErrWrongContent):
		return " why     the bytes that came are not the image's: the registry, or a proxy or mirror on the way, holds a damaged copy\n" +
			" try     again; if it stays so, push the image anew"
	case errors.Is(e.Err, ErrNoPlatform):
		return " try     another --platform, or a base image that is made for this one"
	case e.Status == http.StatusRequestEntityTooLarge:
		return fmt.Sprintf(" why     %s, or a proxy before it, takes no request of that size, and the layer not in pieces of 512 KiB either\n", e.Registry) +
			" try     raise the limit: client_max_body_size in nginx, nginx.ingress.kubernetes.io/proxy-body-size at an Ingress"
	case e.Status >= 500:
		return " why     the registry could not answer, several times\n try     again later; --image-download-retry and --push-retry make hako try longer"
	}
	return e.explainNetwork()
}

func (e *Error) explainDenied() string {
	s := e.who()
	if e.Account.Username == "" && e.Account.Entry == "" {
		return s + fmt.Sprintf(" try     docker login %s, and mount its config.json (DOCKER_CONFIG names its directory)", e.Registry)
	}
	if e.Status == http.StatusUnauthorized {
		return s + fmt.Sprintf(" that account  is not known to %s with that password\n try     docker login %s again; tokens expire", e.Registry, e.Registry)
	}
	return s + fmt.Sprintf(" that account  may not %s %s\n try     give it that right, or use another account", verb(e.Op), e.Repository)
}

func verb(op string) string {
	if op == "push" {
		return "push to"
	}
	return "pull from"
}

// who says as whom the registry was asked.
func (e *Error) who() string {
	s := e.Account.String()
	used := ""
	if e.Account.NotUsed != "" {
		used = " not used      " + e.Account.NotUsed + "\n"
	}
	if rest, ok := strings.CutPrefix(s, "signed in as "); ok {
		return " signed in as  " + rest + "\n" + used
	}
	return " " + s + "\n" + used
}

func (e *Error) explainAbsent() string {
	switch {
	case e.Op == "push":
		return fmt.Sprintf(" why     %s has no repository %s and makes none by itself\n try     make it there first", e.Registry, e.Repository)
	case e.Code == "NAME_UNKNOWN":
		return fmt.Sprintf(" why     %s has no repository %s\n try     check the spelling, and the host before it", e.Registry, e.Repository)
	}
	return fmt.Sprintf(" why     %s has the repository %s, but not this tag or digest\n try     check the tag; it may have been deleted", e.Registry, e.Repository)
}

// explainNetwork is for operations that got no answer.
func (e *Error) explainNetwork() string {
	var (
		dns     *net.DNSError
		unknown x509.UnknownAuthorityError
		host    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	flags := fmt.Sprintf(" try     --registry-certificate %s=CA.pem, or --skip-tls-verify-registry %s to trust it unseen", e.Registry, e.Registry)
	var proxy *ProxyError
	switch {
	case errors.As(e.Err, &proxy) && proxy.Status == http.StatusProxyAuthRequired:
		return " why     the proxy wants to know who asks\n try     user and password in HTTPS_PROXY: http://USER:PASSWORD@" + proxy.Proxy
	case errors.As(e.Err, &proxy):
		return fmt.Sprintf(" try     let the proxy lead to %s, or name it in NO_PROXY if it can be reached without", e.Registry)
	case errors.As(e.Err, &dns) && dns.IsNotFound:
		return fmt.Sprintf(" try     check the name %s; this place's name servers do not know it", e.Registry)
	case errors.As(e.Err, &unknown):
		return fmt.Sprintf(" why     no authority that this place trusts has signed the certificate of %s\n", e.Registry) + flags
	case asksForCertificate(e.Err):
		return fmt.Sprintf(" why     %s wants to see a certificate\n try     --registry-client-cert %s=CERT.pem,KEY.pem", e.Registry, e.Registry)
	case errors.As(e.Err, &host), errors.As(e.Err, &invalid):
		return fmt.Sprintf(" why     the certificate of %s is not good for it\n", e.Registry) + flags
	case errors.Is(e.Err, http.ErrSchemeMismatch):
		return fmt.Sprintf(" why     %s speaks plain HTTP\n try     --insecure-registry %s", e.Registry, e.Registry)
	case errors.Is(e.Err, syscall.ECONNREFUSED):
		return fmt.Sprintf(" why     nothing listens there\n try     check host and port of %s, and that it runs", e.Registry)
	case errors.Is(e.Err, io.EOF), errors.Is(e.Err, io.ErrUnexpectedEOF), errors.Is(e.Err, syscall.ECONNRESET), errors.Is(e.Err, syscall.EPIPE):
		return fmt.Sprintf(" why     %s closed the connection, several times\n try     again; the registry's own log may say why (its disk, its memory, a proxy's size limit)", e.Registry)
	}
	return ""
}

// asksForCertificate recognizes a server that was not shown a certificate that
// it takes. The type of crypto/tls's alerts is not exported; these are the texts
// of certificate_required (RFC 8446, 6.2) and of what TLS 1.2 has for it.
func asksForCertificate(err error) bool {
	alert, ok := remoteAlert(err)
	return ok && (alert == "tls: certificate required" || alert == "tls: bad certificate")
}
