import { isIP } from "node:net";
import { BerthError } from "../../core/errors.ts";
import type { GitAuth } from "../../core/git-source.ts";
import type { OutboundPolicy } from "../../image/outbound.ts";

/** How git is to reach a repository elsewhere: options that stand before its command, and its environment. */
export interface GitRemote {
  options: string[];
  env: Record<string, string>;
  /** Whether it shows credentials. */
  loggedIn: boolean;
}

/**
 * Settings that make git connect to the checked addresses, whatever the name resolves to later, and log in there only.
 * Credentials are in the environment, which no other id can read: arguments are for all to see.
 * @throws BerthError `address_refused`, `repository_not_found`, `repository_unreachable`
 */
export async function gitRemote(
  url: URL,
  auth: GitAuth | null,
  outbound: Pick<OutboundPolicy, "addressesOf">,
): Promise<GitRemote> {
  const options = await pinnedAddress(url, outbound);
  return { options, env: auth === null ? {} : login(url, auth), loggedIn: auth !== null };
}

function login(url: URL, { username, password }: GitAuth): Record<string, string> {
  const basic = Buffer.from(`${username}:${password}`, "utf8").toString("base64");
  return {
    GIT_CONFIG_COUNT: "1",
    GIT_CONFIG_KEY_0: `http.${url.origin}/.extraHeader`,
    GIT_CONFIG_VALUE_0: `Authorization: Basic ${basic}`,
  };
}

async function pinnedAddress(url: URL, outbound: Pick<OutboundPolicy, "addressesOf">): Promise<string[]> {
  const host = url.hostname;
  let addresses: string[];
  try {
    addresses = await outbound.addressesOf(url);
  } catch (error) {
    if (error instanceof BerthError) throw error;
    const missing = (error as NodeJS.ErrnoException).code === "ENOTFOUND";
    const code = missing ? "repository_not_found" : "repository_unreachable";
    throw new BerthError(code, `The host ${JSON.stringify(host)} of the git repository can't be resolved.`, {
      cause: error,
    });
  }
  if (isIP(host.replace(/^\[|\]$/g, "")) !== 0) return [];
  const port = url.port === "" ? (url.protocol === "https:" ? "443" : "80") : url.port;
  const list = addresses.map((address) => (isIP(address) === 6 ? `[${address}]` : address)).join(",");
  // Without curl's `+`, after which the entry would run out and the name be resolved again.
  return ["-c", `http.curloptResolve=${host}:${port}:${list}`];
}
