/** Names of ours as names of RabbitMQ, which have at most 255 bytes of UTF-8. */
import { createHash } from "node:crypto"

const longest = 200
const mark = "sha256:"

/** The name itself, if it is short enough; otherwise its hash. No two names meet. */
export const shortName = (name: string): string =>
  Buffer.byteLength(name) <= longest && name.isWellFormed() && !name.startsWith(mark)
    ? name
    : mark + createHash("sha256").update(Buffer.from(name, "utf16le")).digest("base64url")
