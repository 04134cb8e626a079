/** Where COPY and mounts read from: the build context, another stage, or an image (by `NeededImage.key`). */
export type CopyOrigin = { kind: "context" } | { kind: "stage"; stage: number } | { kind: "image"; key: string };
