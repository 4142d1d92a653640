/**
 * `effect/persistence/Redis` on the connection of the stores, for what Effect
 * builds on it: `RateLimiter`, `PersistedQueue`, `Persistence`.
 *
 * - Commands and subscriptions share the connections of {@link RedisConnection},
 *   with its bounds; `reserve` opens one of its own, up to ten at a time, on a
 *   Redis Cluster to one of its nodes.
 * - A script is run by its hash, and sent in full to a server that does not know
 *   it; on a Redis Cluster, to the node of its keys. Scripts of Effect whose keys
 *   are in several hash slots, as those of a token bucket, need a single server.
 *
 * ```ts
 * RateLimiter.layer.pipe(
 *   Layer.provide(RateLimiter.layerStoreRedis()),
 *   Layer.provide(RedisPersistence.layer),
 *   Layer.provide(RedisConnection.layer())
 * )
 * ```
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redis from "effect/persistence/Redis"
import type * as Scope from "effect/Scope"
import type { Unavailable } from "../../services/Reason.ts"
import { RedisConnection } from "./RedisConnection.ts"
import { unavailable, withoutArguments } from "./RedisLink.ts"
import * as RedisScript from "./RedisScript.ts"

/** What ioredis said, if that is known: Effect looks into it. */
const wrapError = (error: Unavailable) => new Redis.RedisError({ cause: error.cause ?? error })

/**
 * Makes the service.
 *
 * @since 0.2.0
 */
export const make: Effect.Effect<Redis.Redis["Service"], never, RedisConnection | Scope.Scope> = Effect.gen(
  function* () {
    const redis = yield* RedisConnection
    const scripts = new Map<string, RedisScript.RedisScript>()

    /** Loading a script is remembering it: whoever runs it sends it where it is missing. */
    const load = (lua: string): string => {
      const script = RedisScript.make(lua)
      scripts.set(script.sha, script)
      return script.sha
    }

    const send = <A = unknown>(command: string, ...args: ReadonlyArray<string>): Effect.Effect<A, Redis.RedisError> =>
      Effect.suspend(() => {
        const name = command.toLowerCase()
        if (name === "script" && args.length === 2 && args[0]!.toLowerCase() === "load") {
          return Effect.succeed(load(args[1]!) as A)
        }
        const script = name === "evalsha" ? scripts.get(args[0]!) : undefined
        if (script === undefined) return Effect.mapError(redis.send<A>(name, args), wrapError)
        const keys = Number(args[1])
        return Effect.mapError(redis.run<A>(script, args.slice(2, 2 + keys), args.slice(2 + keys)), wrapError)
      })

    const attempt = <A>(evaluate: () => Promise<A>) =>
      Effect.tryPromise({
        try: evaluate,
        catch: (cause) => new Redis.RedisError({ cause: withoutArguments(cause) })
      })

    return yield* Redis.make({
      send,
      subscribe: (channel, onMessage) =>
        redis
          .subscribe(
            channel,
            (message) => onMessage({ channel, message }),
            () => undefined
          )
          .pipe(Effect.mapError(wrapError), Effect.as(Effect.never)),
      connect: Effect.suspend(() => {
        const client = redis.dedicated()
        let lastError: unknown
        client.on("error", (error) => {
          lastError = error
        })
        const call = (command: string, ...args: ReadonlyArray<string>) =>
          client.call(command, ...args).catch((error) => {
            const script = command.toLowerCase() === "evalsha" ? scripts.get(args[0]!) : undefined
            if (script === undefined || !error.message.startsWith("NOSCRIPT")) throw error
            return client.call("eval", script.lua, ...args.slice(1))
          })
        return attempt(() =>
          client.connect().catch((error) => {
            throw lastError ?? error
          })
        ).pipe(
          // Once it is connected it may wait as long as it likes for an answer, and not before.
          Effect.interruptible,
          Effect.timeoutOrElse({
            duration: redis.timeout,
            orElse: () => Effect.fail(wrapError(unavailable(`no answer within ${redis.timeout} ms`, lastError)))
          }),
          Effect.onError(() => Effect.sync(() => client.disconnect())),
          Effect.as({
            send: <A = unknown>(command: string, ...args: ReadonlyArray<string>) =>
              attempt(() => call(command, ...args) as Promise<A>),
            close: Effect.sync(() => client.disconnect())
          })
        )
      })
    })
  }
)

/**
 * Provides `effect/persistence/Redis`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<Redis.Redis, never, RedisConnection> = Layer.effect(Redis.Redis, make)
