/** How far a pull or push has got; bytes are those of compressed layers, also of layers that need not be moved. */
export interface TransferProgress {
  layersDone: number;
  layersTotal: number;
  bytesDone: number;
  bytesTotal: number;
}

/** What a pull or push moved; bytes that were sent again after a failure count again. */
export interface TransferCounts {
  layersTransferred: number;
  layersSkipped: number;
  bytesTransferred: number;
}

/** What a transfer moved that found so many layers where they were to go. */
export function nothingMoved(layers: number): TransferCounts {
  return { layersTransferred: 0, layersSkipped: layers, bytesTransferred: 0 };
}
