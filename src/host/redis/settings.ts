/**
 * The Redis that the environment names, for people: what is wrong is told with the
 * name of the variable.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Stream from "effect/Stream"
import * as RedisConnection from "../../layers/redis/RedisConnection.ts"
import * as RedisOptions from "../../layers/redis/RedisOptions.ts"
import { ofConfig, Refused } from "../Refused.ts"
import type * as Server from "../Server.ts"
import * as PrivateRedis from "./PrivateRedis.ts"

/** The options of the environment. */
const options: Effect.Effect<RedisOptions.RedisOptions, Refused> = RedisOptions.config.pipe(Effect.mapError(ofConfig))

/** Connects once, to know. */
const check = (variable: string): Effect.Effect<void, Refused> =>
  Effect.gen(function* () {
    const found = yield* options
    yield* Effect.mapError(
      Layer.build(RedisConnection.layer(found)),
      (error) => new Refused({ detail: `${variable}: ${error.message}` })
    )
  }).pipe(
    Effect.scoped,
    // The error tells what the connection would warn of.
    Effect.provideService(References.MinimumLogLevel, "Error")
  )

/** Removes what an app has stored; its name must not be a part of another's. */
const forget = (app: string): Effect.Effect<void> =>
  Effect.gen(function* () {
    const redis = yield* RedisConnection.make(yield* options)
    yield* Stream.runForEach(redis.scan(`cohort*${app}*`), (keys) =>
      // One by one: on a Redis Cluster they are on several nodes. All of a turn are one write.
      Effect.forEach(keys, (key) => redis.send("unlink", [key]), { concurrency: "unbounded", discard: true })
    )
  }).pipe(Effect.scoped, Effect.ignore)

export const server: Server.Kind = {
  variables: ["REDIS_URL", "REDIS_SENTINELS", "REDIS_CLUSTER"],
  others: ["REDIS_SENTINEL_MASTER", "REDIS_USERNAME", "REDIS_PASSWORD", "REDIS_TLS"],
  options,
  check,
  binary: "redis-server",
  start: PrivateRedis.start,
  forget
}
