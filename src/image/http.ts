import { Agent as HttpAgent, request as httpRequest, type IncomingMessage } from "node:http";
import { Agent as HttpsAgent, request as httpsRequest } from "node:https";
import { BerthError } from "../core/errors.ts";
import type { OutboundPolicy } from "./outbound.ts";

export interface HttpRequest {
  method: "GET" | "HEAD";
  url: URL;
  headers: Readonly<Record<string, string>>;
  signal: AbortSignal;
}

/**
 * Requests to hosts that a tenant may have named: the address is checked as it is connected to, and nothing is followed or
 * decoded. Connections are kept for the next request.
 */
export class HttpClient {
  readonly #policy: OutboundPolicy;
  readonly #idleMs: number;
  readonly #http = new HttpAgent({ keepAlive: true, maxSockets: 16 });
  readonly #https = new HttpsAgent({ keepAlive: true, maxSockets: 16 });

  /** @param idleMs How long a connection may take to open, and then be silent, before it is given up. */
  constructor(policy: OutboundPolicy, idleMs: number) {
    this.#policy = policy;
    this.#idleMs = idleMs;
  }

  /**
   * Sends a request. Returns the response with its body unread; whoever gets it reads or destroys it.
   * @throws BerthError `address_refused`; otherwise Node's network errors.
   */
  async send({ method, url, headers, signal }: HttpRequest): Promise<IncomingMessage> {
    if (url.protocol !== "http:" && url.protocol !== "https:") {
      throw new BerthError("invalid_request", `Berth does not speak ${JSON.stringify(url.protocol)}.`);
    }
    const lookup = this.#policy.lookupFor(url);
    const [start, agent] = url.protocol === "https:" ? [httpsRequest, this.#https] : [httpRequest, this.#http];
    return new Promise((resolve, reject) => {
      const outgoing = start(url, { method, headers, agent, lookup, signal, timeout: this.#idleMs });
      outgoing.once("response", resolve);
      outgoing.once("error", reject);
      outgoing.once("timeout", () => {
        outgoing.destroy(new Error(`no answer from ${url.host} for ${String(this.#idleMs)} ms`));
      });
      outgoing.end();
    });
  }

  /** Closes the connections that are kept. */
  close(): void {
    this.#http.destroy();
    this.#https.destroy();
  }
}

/** A response's whole body. null: it is larger than `maxBytes`. */
export async function readBody(response: IncomingMessage, maxBytes: number): Promise<Buffer | null> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBytes) return null;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
