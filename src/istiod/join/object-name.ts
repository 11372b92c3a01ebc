/** Names of Kubernetes objects. */

/** Whether the text is an RFC 1123 subdomain, the form of most object names. */
export function isObjectName(text: string): boolean {
  return /^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$/.test(text);
}

/** Whether the text is an RFC 1123 label, the form of a namespace's name. */
export function isNamespace(text: string): boolean {
  return /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/.test(text);
}

/** Whether the text is a SPIFFE trust domain: lower case letters, digits, dots, dashes and underscores, at most 255. */
export function isTrustDomain(text: string): boolean {
  return /^[a-z0-9._-]{1,255}$/.test(text);
}
