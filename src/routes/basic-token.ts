/** The password of HTTP's Basic authentication (RFC 7617), which is the token; null: there is none. */
export function basicToken(authorization: string): string | null {
  const encoded = /^Basic ([A-Za-z0-9+/=]{1,1024})$/i.exec(authorization)?.[1];
  const password =
    encoded === undefined
      ? null
      : Buffer.from(encoded, "base64")
          .toString()
          .replace(/^[^:]*:/, "");
  return password !== null && /^[\x21-\x7e]{1,512}$/.test(password) ? password : null;
}
