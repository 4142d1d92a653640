/**
 * Lua scripts, run by their hash.
 *
 * A script is sent in full only to a server that does not know it: the first
 * time, and after `SCRIPT FLUSH` or a restart. All keys of one run must be in one
 * hash slot. A script is flagged `retry` when running it twice is as good as
 * once: it is then repeated when the connection is lost under it.
 */
import { createHash } from "node:crypto"

export interface RedisScript {
  readonly lua: string
  readonly sha: string
  readonly retry: boolean
}

export const make = (lua: string, options: { readonly retry?: boolean } = {}): RedisScript => ({
  lua,
  sha: createHash("sha1").update(lua).digest("hex"),
  retry: options.retry ?? false
})
