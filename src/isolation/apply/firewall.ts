import {
  containerElements,
  type Element,
  elementCommand,
  fixedCommands,
  type HostPort,
  type Protection,
  portElements,
  tableText,
} from "../plan/firewall.ts";
import { type NetworkScope, slotOfAddress, slotOfVeth, tableName } from "../plan/network.ts";
import { type Nft, NftError } from "./nft.ts";

/** What a container's links and addresses may do. */
export interface Membership {
  /** Containers of one project reach each other, and nobody else's. */
  project: string;
  /** Whether it may open connections to the outside. */
  egress: boolean;
}

/** Where a published port leads. */
export interface PortTarget {
  slot: number;
  containerPort: number;
}

export type PublishedPort = HostPort & PortTarget;

/** How often a change looks at the table again because other programs were faster; then the table is made again. */
const attempts = 5;

/**
 * The instance's table, and what ought to be in it. Every change is one transaction of elements. The kernel's copy
 * outlives a worker, and a new worker reads it back; when another program damages it (`flush ruleset` would open
 * everything) it is made again, whole, in one transaction.
 */
export class Firewall {
  readonly #nft: Nft;
  readonly #scope: NetworkScope;
  readonly #resolvers: readonly string[];
  readonly #allowed: readonly string[];
  readonly #without: readonly Protection[];
  readonly #containers = new Map<number, Membership & { group: number }>();
  readonly #ports = new Map<string, PublishedPort>();
  /** The table as listed after we made it, and the generation in which it was known to be so. */
  #listing = "";
  #generation = -1;

  /**
   * Takes over what the kernel holds of this instance, and puts it under this version's rules.
   * `resolvers`: the name servers that containers may ask although their addresses are private; `allowed`: CIDR blocks
   * of private networks that those with egress may reach.
   */
  constructor(
    nft: Nft,
    scope: NetworkScope,
    options: { resolvers?: readonly string[]; allowed?: readonly string[]; without?: readonly Protection[] } = {},
  ) {
    this.#nft = nft;
    this.#scope = scope;
    this.#resolvers = options.resolvers ?? [];
    this.#allowed = options.allowed ?? [];
    this.#without = options.without ?? [];
    this.#load();
    this.#rebuild();
  }

  /** The slots that are let in, for the sweep. */
  slots(): number[] {
    return [...this.#containers.keys()];
  }

  /** The host ports that lead somewhere, for the sweep. */
  ports(): PublishedPort[] {
    return [...this.#ports.values()];
  }

  /** Lets a container send and receive. Idempotent; a slot that had another membership takes the new one. */
  admit(slot: number, membership: Membership): void {
    if (!/^\w{1,100}$/.test(membership.project)) throw new RangeError("a project's id is made of letters and digits");
    const before = this.#containers.get(slot);
    if (before?.project === membership.project && before.egress === membership.egress) return;
    const after = { ...membership, group: this.#groupOf(membership.project, slot) };
    this.#containers.set(slot, after);
    this.#change(
      before === undefined ? [] : containerElements(this.#scope, slot, before),
      containerElements(this.#scope, slot, after),
    );
  }

  /** Takes a container's elements out, and with them the ports that lead to it. Idempotent. */
  expel(slot: number): void {
    const before = this.#containers.get(slot);
    const ports = this.ports().filter((port) => port.slot === slot);
    this.#containers.delete(slot);
    for (const port of ports) this.#ports.delete(keyOf(port));
    this.#change(
      [
        ...(before === undefined ? [] : containerElements(this.#scope, slot, before)),
        ...ports.flatMap((port) => portElements(this.#scope, port, port)),
      ],
      [],
    );
  }

  /** Leads a host port to a container's port; one that led elsewhere is switched in one transaction. Idempotent. */
  setPort(port: HostPort, target: PortTarget): void {
    const before = this.#ports.get(keyOf(port));
    if (before?.slot === target.slot && before.containerPort === target.containerPort) return;
    this.#ports.set(keyOf(port), { ...port, ...target });
    this.#change(
      before === undefined ? [] : portElements(this.#scope, port, before),
      portElements(this.#scope, port, target),
    );
  }

  /** Idempotent. Connections that exist go on until they are flushed (conntrack.ts). */
  clearPort(port: HostPort): void {
    const before = this.#ports.get(keyOf(port));
    if (before === undefined) return;
    this.#ports.delete(keyOf(port));
    this.#change(portElements(this.#scope, port, before), []);
  }

  /**
   * Looks whether another program changed nftables since, and if our table suffered makes it again. To be called every
   * second or so: it costs 14 µs when nothing happened. Returns whether it had to be made again.
   */
  reconcile(): boolean {
    if (this.#nft.generation() === this.#generation) return false;
    return this.#repair();
  }

  /** Removes the table: nothing protects, or leads to, containers any more. */
  drop(): void {
    dropTable(this.#nft, this.#scope);
    this.#containers.clear();
    this.#ports.clear();
    this.#listing = "";
  }

  /**
   * What the maps say already is done in the kernel too: by these elements or, where they don't fit what is there, with
   * the whole table. Nobody's change comes between the look at the table and ours: the kernel compares the generation.
   */
  #change(remove: readonly Element[], add: readonly Element[]): void {
    if (remove.length + add.length === 0) return;
    for (let attempt = 0; attempt < attempts; attempt++) {
      const after = this.#tryChange(remove, add);
      if (after === "refused") break;
      if (after !== "overtaken") {
        this.#generation = after;
        return;
      }
      if (this.#repair()) return;
    }
    this.#rebuild();
  }

  /** The generation that the change made; `refused`: the sets don't hold what they should; `overtaken`: look first. */
  #tryChange(remove: readonly Element[], add: readonly Element[]): number | "refused" | "overtaken" {
    try {
      return this.#nft.change(this.#generation, tableName(this.#scope), remove, add) ?? "overtaken";
    } catch (error) {
      // An element that should be there is gone, or the other way round: somebody touched our sets.
      if (error instanceof NftError) return "refused";
      throw error;
    }
  }

  /** Makes the table again if its rules are not ours any more; what a change was about to do is then done. */
  #repair(): boolean {
    const generation = this.#nft.generation();
    if (this.#nft.table(tableName(this.#scope)) !== this.#listing) {
      this.#rebuild();
      return true;
    }
    this.#generation = generation;
    return false;
  }

  #rebuild(): void {
    const elements = [
      ...[...this.#containers].flatMap(([slot, membership]) => containerElements(this.#scope, slot, membership)),
      ...this.ports().flatMap((port) => portElements(this.#scope, port, port)),
    ];
    const commands = [
      tableText(this.#scope, this.#without),
      ...fixedCommands(this.#scope, this.#resolvers, this.#allowed),
      ...elements.map((element) => elementCommand(this.#scope, element)),
    ];
    this.#nft.run(commands.join("\n"));
    this.#generation = this.#nft.generation();
    this.#listing = this.#nft.table(tableName(this.#scope)) ?? "";
  }

  /** The project's number, or the lowest that no project uses. Marks are 32 bits; 0 is nobody's. */
  #groupOf(project: string, exceptSlot: number): number {
    const used = new Set<number>();
    for (const [slot, member] of this.#containers) {
      if (slot === exceptSlot) continue;
      if (member.project === project) return member.group;
      used.add(member.group);
    }
    let group = 1;
    while (used.has(group)) group++;
    return group;
  }

  #load(): void {
    const table = tableName(this.#scope);
    const egress = new Set(this.#nft.elements("set", table, "egress"));
    for (const entry of this.#nft.elements("map", table, "group")) {
      const [key, group] = entry as [{ elem?: { val: string; comment: string } }, number];
      if (key.elem === undefined) continue;
      const slot = slotOfVeth(this.#scope, key.elem.val);
      if (slot === null) continue;
      this.#containers.set(slot, { project: key.elem.comment, group, egress: egress.has(key.elem.val) });
    }
    for (const set of ["port4", "port4_at", "port6_at"]) {
      for (const entry of this.#nft.elements("map", table, set)) {
        const [{ concat: key }, { concat: value }] = entry as [{ concat: unknown[] }, { concat: [string, number] }];
        const [hostPort, protocol, hostAddress] = key.toReversed() as [number, "tcp" | "udp", string | undefined];
        const slot = slotOfAddress(this.#scope, value[0]);
        if (slot === null) continue;
        const port = { hostAddress: hostAddress ?? null, protocol, hostPort, slot, containerPort: value[1] };
        this.#ports.set(keyOf(port), port);
      }
    }
  }
}

/** Removes an instance's table, if it is there. */
export function dropTable(nft: Nft, scope: NetworkScope): void {
  const table = `inet ${tableName(scope)}`;
  nft.run(`add table ${table}\ndelete table ${table}`);
}

function keyOf(port: HostPort): string {
  return `${port.hostAddress ?? "*"} ${port.protocol} ${port.hostPort}`;
}
