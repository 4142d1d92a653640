/**
 * Tells when Redis is set up to lose what it has accepted.
 */
import * as Effect from "effect/Effect"
import type { RedisConnection } from "./RedisConnection.ts"

/**
 * Asks Redis once how it is set up, and logs a warning when its death loses what it has accepted, or when it may
 * evict it. Never fails: one who may not ask, or a Redis that is away, is worth a line for debugging.
 */
export const warnUnlessDurable = (redis: RedisConnection["Service"]): Effect.Effect<void> =>
  Effect.gen(function* () {
    const ask = (section: string) => redis.send<string>("info", [section], { retry: true })
    const persistence = yield* ask("persistence")
    const memory = yield* ask("memory")
    if (field(persistence, "aof_enabled") === "0") {
      yield* Effect.logWarning(
        "Redis keeps no append-only file: when it dies, the jobs it has accepted since its last snapshot are lost. Set appendonly yes."
      )
    }
    const policy = field(memory, "maxmemory_policy")
    if (policy !== undefined && policy !== "noeviction") {
      const limit = field(memory, "maxmemory") === "0" ? ", once it has a memory limit" : ""
      yield* Effect.logWarning(
        `Redis may evict queued jobs when its memory is full${limit}: its maxmemory-policy is ${policy}. Set maxmemory-policy noeviction.`
      )
    }
  }).pipe(
    Effect.catchCause((cause) => Effect.logDebug("Redis does not tell how durable it is", cause)),
    Effect.annotateLogs({ backend: "redis" })
  )

const field = (info: string, name: string): string | undefined => new RegExp(`^${name}:(.*?)\\r?$`, "m").exec(info)?.[1]
