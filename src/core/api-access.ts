import { keyedClient } from "./keyed-tls.ts";
import { parseCredential } from "./keys.ts";

/** How a host that is away from the API reaches its internal listener. */
export interface ApiAccess {
  /**
   * `tls://ADDRESS:PORT`: the listener itself, by keys. `https:` and `http:`: one with a certificate, or what is in front
   * of it.
   */
  url: string;
  /** PEM of the authorities to trust for https; null: those that Node trusts. */
  ca: string | null;
  /** What the host proves itself with: its own credential, or a join token. */
  credential: string;
}

/** What Node's https takes to make such a connection, or what its http takes. */
export interface Transport {
  url: URL;
  tls: Partial<ReturnType<typeof keyedClient>> & { ca?: string };
}

export function transportOf({ url, ca, credential }: ApiAccess): Transport {
  if (!url.startsWith("tls:")) return { url: new URL(url), tls: ca === null ? {} : { ca } };
  const { id, key } = parseCredential(credential) ?? { id: "", key: "" };
  return { url: new URL(url.replace(/^tls:/, "https:")), tls: keyedClient(id, key) };
}

/**
 * Where the internal listener passes a connection on to the embedded database, and what that connection becomes by it
 * (RFC 9110, section 7.8).
 */
export const databaseTunnel = { path: "/internal/database", protocol: "berth-database" } as const;
