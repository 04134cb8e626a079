/** What is measured of an engine; one implementation each for Berth and its peer, doing the same work. */
export interface Engine {
  name: string;
  /** Builds an image from a tar of a context and tags it; answers when it can be run. */
  build(tag: string, context: Buffer): Promise<void>;
  /** Creates and starts a container; answers when the engine says so (it may not run yet). */
  start(image: string, command: string[]): Promise<string>;
  /** All that the container wrote to stdout once it has written a line. */
  firstLine(id: string): Promise<string>;
  /** Kills and removes the container; answers when nothing of it is left. */
  remove(id: string): Promise<void>;
  /** Process ids of what the engine keeps for a container beyond the container's own processes. */
  keepers(id: string): Promise<number[]>;
  /** Gets an image from a registry; answers when it can be run. */
  pull(reference: string): Promise<void>;
  /** Publishes an image of its own under another reference. */
  push(tag: string, destination: string): Promise<void>;
  close(): Promise<void>;
}
