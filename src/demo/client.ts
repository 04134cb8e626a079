/** An answer of the API that is not what was hoped for; `code` as in the API's problem details. */
export class Refused extends Error {
  readonly code: string;

  constructor(code: string, detail: string) {
    super(detail);
    this.code = code;
  }
}

/** Waits of the API's own are shorter than this; an API that says nothing for so long is stuck. */
const answerMs = 120_000;

/** A client of the public HTTP API, as anybody could write one. */
export class Client {
  readonly #url: string;
  readonly #headers: Record<string, string>;

  constructor(url: string, token: string) {
    this.#url = url;
    this.#headers = { authorization: `Bearer ${token}` };
  }

  get<T>(path: string): Promise<T> {
    return this.#request<T>("GET", path, {}, null);
  }

  /** Posts JSON, or a tar as bytes; `wait` is how many seconds the answer may be held until the resource settles. */
  post<T>(path: string, body: Uint8Array<ArrayBuffer> | object, wait = 0): Promise<T> {
    const tar = body instanceof Uint8Array;
    const headers = {
      "content-type": tar ? "application/x-tar" : "application/json",
      ...(wait > 0 ? { prefer: `wait=${String(wait)}` } : {}),
    };
    return this.#request<T>("POST", path, headers, tar ? body : JSON.stringify(body));
  }

  async delete(path: string, wait = 0): Promise<void> {
    await this.#request("DELETE", path, wait > 0 ? { prefer: `wait=${String(wait)}` } : {}, null);
  }

  async #request<T>(
    method: string,
    path: string,
    headers: Record<string, string>,
    body: string | Uint8Array<ArrayBuffer> | null,
  ): Promise<T> {
    const all = { ...this.#headers, ...headers };
    const response = await fetch(this.#url + path, {
      method,
      headers: all,
      body,
      signal: AbortSignal.timeout(answerMs),
    });
    const text = await response.text();
    if (!response.ok) {
      const { code = "internal", detail = text } = JSON.parse(text) as { code?: string; detail?: string };
      throw new Refused(code, detail);
    }
    return (text === "" ? null : JSON.parse(text)) as T;
  }
}
