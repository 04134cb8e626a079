/**
 * TLS between two machines of ours that both have a key: each proves it to the other and nobody else can listen, without
 * certificates. TLS 1.2, which is where Node has pre-shared keys, with one cipher suite: ephemeral keys, so that a key
 * that leaks later opens no recording, and an AEAD (RFC 5489, RFC 7905).
 */
const suite = {
  ciphers: "ECDHE-PSK-CHACHA20-POLY1305",
  minVersion: "TLSv1.2",
  maxVersion: "TLSv1.2",
} as const;

const bytesOf = (key: string) => Buffer.from(key, "base64url");

/** Options of a server; `keyOf` says the key (base64url) of who connects, null: nobody that is let in. */
export function keyedServer(keyOf: (identity: string) => string | null) {
  return {
    ...suite,
    pskCallback: (_socket: unknown, identity: string) => {
      const key = keyOf(identity);
      return key === null ? null : bytesOf(key);
    },
  };
}

export type KeyedServer = ReturnType<typeof keyedServer>;

/** Options of a connection to such a server. */
export function keyedClient(identity: string, key: string) {
  return {
    ...suite,
    pskCallback: () => ({ psk: bytesOf(key), identity }),
    // There is no certificate to look at: the server has shown the key.
    checkServerIdentity: () => undefined,
  };
}
