import koffi from "koffi";
import type { Element } from "../plan/firewall.ts";
import { SyscallError } from "./ffi.ts";
import { attributesOf, NETLINK_NETFILTER, NetlinkSocket } from "./netlink.ts";
import { elementTransaction } from "./nft-elements.ts";

/**
 * nftables in process. What is made or read as text goes through libnftables: a spawned `nft` takes 2.4 ms, and a new
 * context for each command 14. Changes of elements are messages of our own: 0.3 ms for a container's, where libnftables
 * takes 0.7, since every change puts its copy of the ruleset out of date, and it asks for all of that again before the
 * next (p50, changes 40 ms apart, 50 containers in the table). The library is not thread-safe, so all calls are
 * synchronous: one after another by nature.
 */

const library = koffi.load("libnftables.so.1");
const newContext = library.func("nft_ctx_new", "void *", ["uint32_t"]);
const freeContext = library.func("nft_ctx_free", "void", ["void *"]);
const bufferOutput = library.func("nft_ctx_buffer_output", "int", ["void *"]);
const bufferError = library.func("nft_ctx_buffer_error", "int", ["void *"]);
const outputOf = library.func("nft_ctx_get_output_buffer", "str", ["void *"]);
const errorOf = library.func("nft_ctx_get_error_buffer", "str", ["void *"]);
const setFlags = library.func("nft_ctx_output_set_flags", "void", ["void *", "uint32_t"]);
const runCommands = library.func("nft_run_cmd_from_buffer", "int", ["void *", "str"]);

const OUTPUT_JSON = 1 << 4;
const OUTPUT_NUMERIC_SYMBOL = 1 << 9;
const OUTPUT_TERSE = 1 << 11;

/** The kernel or the library refused a transaction; nothing of it was applied. */
export class NftError extends Error {
  constructor(complaint: string) {
    super(`nft: ${complaint}`);
    this.name = "NftError";
  }
}

const NFT_MSG_GETGEN = (10 << 8) | 16;
const NFTA_GEN_ID = 1;
/** Of the kernel's own errors, which have no name elsewhere: here, that the generation is another. */
const ERESTART = 85;

/** nftables of the worker's network namespace. */
export class Nft {
  readonly #context = newContext(0) as unknown;
  readonly #netlink = new NetlinkSocket(NETLINK_NETFILTER);

  constructor() {
    bufferOutput(this.#context);
    bufferError(this.#context);
  }

  close(): void {
    freeContext(this.#context);
    this.#netlink.close();
  }

  /** Runs commands as one transaction: all or none. @throws NftError */
  run(commands: string): void {
    this.#output(commands, OUTPUT_NUMERIC_SYMBOL);
  }

  /**
   * Takes elements out and puts others in, in one transaction, provided that nobody has changed anything since
   * `generation`. Returns the generation that it made; null: somebody has, and nothing was done.
   * @throws NftError when one to take out is not there, or one to put in is there already; nothing was done.
   */
  change(generation: number, table: string, remove: readonly Element[], add: readonly Element[]): number | null {
    try {
      this.#netlink.batch(elementTransaction(generation, table, remove, add));
    } catch (error) {
      if (!(error instanceof SyscallError)) throw error;
      if (error.errno === ERESTART) return null;
      throw new NftError(error.message);
    }
    // A transaction raises it by one, and leaves 0 out when 32 bits are used up.
    return (generation % 0xffff_ffff) + 1;
  }

  /** A table's chains, rules and declarations, without elements; null: there is no such table. */
  table(name: string): string | null {
    try {
      return this.#output(`list table inet ${name}`, OUTPUT_NUMERIC_SYMBOL | OUTPUT_TERSE);
    } catch {
      return null;
    }
  }

  /** The elements of a set or map, as nft's JSON has them (libnftables-json(5)); none when there is no such set. */
  elements(kind: "set" | "map", table: string, name: string): unknown[] {
    let text: string;
    try {
      text = this.#output(`list ${kind} inet ${table} ${name}`, OUTPUT_NUMERIC_SYMBOL | OUTPUT_JSON);
    } catch {
      return [];
    }
    const listing = JSON.parse(text) as { nftables: Record<string, { elem?: unknown[] }>[] };
    return listing.nftables.flatMap((object) => object[kind]?.elem ?? []);
  }

  /** A number that every change by any program raises (14 µs to ask). */
  generation(): number {
    const answer = this.#netlink.get({
      type: NFT_MSG_GETGEN,
      flags: 0,
      body: Buffer.alloc(4),
      about: "ask for the nftables generation",
    });
    return attributesOf(answer, 4).get(NFTA_GEN_ID)?.readUInt32BE() ?? 0;
  }

  #output(commands: string, flags: number): string {
    setFlags(this.#context, flags);
    const result = runCommands(this.#context, commands) as number;
    // Reading a buffer empties it.
    const output = outputOf(this.#context) as string | null;
    const complaint = errorOf(this.#context) as string | null;
    if (result !== 0) throw new NftError(`${(complaint ?? "failed").trim()} in: ${commands.slice(0, 500)}`);
    return output ?? "";
  }
}
