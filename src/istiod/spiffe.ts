/** Who a workload is in the mesh: a trust domain, a namespace and a service account. */
export interface SpiffeId {
  trustDomain: string;
  namespace: string;
  serviceAccount: string;
}

/** `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT` */
export function formatSpiffe(id: SpiffeId): string {
  return `spiffe://${id.trustDomain}/ns/${id.namespace}/sa/${id.serviceAccount}`;
}

/** Reads what formatSpiffe writes; undefined for any other text. */
export function parseSpiffe(text: string): SpiffeId | undefined {
  const [, trustDomain, namespace, serviceAccount] =
    /^spiffe:\/\/([^/\s]+)\/ns\/([^/\s]+)\/sa\/([^/\s]+)$/.exec(text) ?? [];
  if (trustDomain === undefined || namespace === undefined || serviceAccount === undefined) return undefined;
  return { trustDomain, namespace, serviceAccount };
}
