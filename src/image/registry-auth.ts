/** A user's name and password (or access token) at one registry. */
export interface RegistryAuth {
  username: string;
  password: string;
}

/** One challenge of a `WWW-Authenticate` header (RFC 9110, 11.6.1), its scheme in lower case. */
export interface Challenge {
  scheme: string;
  parameters: ReadonlyMap<string, string>;
}

const token = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y;
const parameter = /([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([!#$%&'*+.^_`|~0-9A-Za-z-]+))/y;

/** Parses the header; what is malformed ends the list. */
export function parseChallenges(header: string): Challenge[] {
  const challenges: { scheme: string; parameters: Map<string, string> }[] = [];
  let at = 0;
  const skip = (pattern: RegExp): void => {
    pattern.lastIndex = at;
    at += pattern.exec(header)?.[0].length ?? 0;
  };
  for (;;) {
    skip(/[ \t,]*/y);
    parameter.lastIndex = at;
    const found = parameter.exec(header);
    const current = challenges.at(-1);
    if (found !== null && current !== undefined) {
      const value = found[3] ?? (found[2] ?? "").replace(/\\(.)/g, "$1");
      current.parameters.set((found[1] ?? "").toLowerCase(), value);
      at = parameter.lastIndex;
      continue;
    }
    token.lastIndex = at;
    const scheme = token.exec(header)?.[0];
    if (scheme === undefined) return challenges;
    challenges.push({ scheme: scheme.toLowerCase(), parameters: new Map() });
    at = token.lastIndex;
  }
}

/** The `Authorization` of HTTP Basic (RFC 7617). */
export function basicAuthorization({ username, password }: RegistryAuth): string {
  return `Basic ${Buffer.from(`${username}:${password}`, "utf8").toString("base64")}`;
}

/**
 * Where to get a bearer token for a challenge (distribution's token authentication), or why not. A realm is chosen by the
 * registry and gets the user's credentials, so it must be https; a plain-http registry's realm may also be that registry.
 */
export function tokenUrl(challenge: Challenge, registry: URL, ...scopes: readonly string[]): URL | { refused: string } {
  const realm = challenge.parameters.get("realm") ?? "";
  if (!URL.canParse(realm)) return { refused: "its token realm is not a URL" };
  const url = new URL(realm);
  const own = registry.protocol === "http:" && url.origin === registry.origin;
  if (url.protocol !== "https:" && !own) return { refused: "its token realm is not https" };
  url.username = "";
  url.password = "";
  const service = challenge.parameters.get("service");
  if (service !== undefined) url.searchParams.set("service", service);
  url.searchParams.delete("scope");
  for (const scope of scopes) url.searchParams.append("scope", scope);
  return url;
}

/** The token of a token server's answer; null when it has none. */
export function parseToken(body: string): string | null {
  try {
    const answer = JSON.parse(body) as { token?: unknown; access_token?: unknown } | null;
    const text = answer?.token ?? answer?.access_token;
    return typeof text === "string" && /^[\x21-\x7e]+$/.test(text) ? text : null;
  } catch {
    return null;
  }
}
