/**
 * gRPC's decoder keeps the pieces of a message, which together are as large as the message, until the next one begins. istiod
 * sends a whole mesh in one message (40 MB with 100,000 workloads), and the next may come a day later.
 */
import { StreamDecoder } from "@grpc/grpc-js/build/src/stream-decoder.js";

/** The decoder's fields that matter here; `readState` is 0 between two messages. */
interface Between {
  readState?: number;
  readPartialMessage?: Buffer[];
}

let isSet = false;

/** From now on decoders of this process drop the pieces of a message that is complete. */
export function dropPiecesOfMessages(): void {
  if (isSet) return;
  isSet = true;
  const { write } = StreamDecoder.prototype;
  StreamDecoder.prototype.write = function (this: StreamDecoder, data: Buffer): Buffer[] {
    const messages = write.call(this, data);
    const decoder = this as unknown as Between;
    if (messages.length > 0 && decoder.readState === 0) decoder.readPartialMessage = [];
    return messages;
  };
}
