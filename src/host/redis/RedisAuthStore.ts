/**
 * What `auth` keeps, on Redis: the policy as a string of JSON, the revoked tokens
 * as a sorted set by the time they expire.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { RedisConnection } from "../../layers/redis/RedisConnection.ts"
import { encodeKey } from "../../layers/redis/wire.ts"
import { AuthStore } from "../../plugins/auth/index.ts"
import { Instance } from "../../services/Instance.ts"
import { failing } from "../../plugins/StoreError.ts"
import { prefix } from "./support.ts"

const Policy = Schema.fromJsonString(AuthStore.TokenPolicy)
const decode = Schema.decodeUnknownEffect(Policy)
const encode = Schema.encodeEffect(Policy)

export const layer: Layer.Layer<AuthStore.AuthStore, never, RedisConnection | Instance> = Layer.effect(
  AuthStore.AuthStore,
  Effect.gen(function* () {
    const redis = yield* RedisConnection
    const { app } = yield* Instance
    const policy = `${prefix(app)}auth:policy`
    const revoked = `${prefix(app)}auth:revoked`
    const store = failing("auth")
    // Each command may be repeated: all of them say how things shall be, not how they change.
    const send = <A>(command: string, args: ReadonlyArray<string | number>) =>
      redis.send<A>(command, args, { retry: true })

    return AuthStore.AuthStore.of({
      policy: store(
        Effect.flatMap(send<string | null>("get", [policy]), (text) =>
          text === null ? Effect.succeed(AuthStore.defaultPolicy) : decode(text)
        )
      ),
      setPolicy: (next) => store(Effect.flatMap(encode(next), (text) => send("set", [policy, text]))),
      revoke: (tokenId, expiresAt) => store(send("zadd", [revoked, expiresAt.epochMilliseconds, encodeKey(tokenId)])),
      isRevoked: (tokenId) =>
        store(Effect.map(send<string | null>("zscore", [revoked, encodeKey(tokenId)]), (score) => score !== null)),
      purge: (now) => store(send<number>("zremrangebyscore", [revoked, "-inf", now.epochMilliseconds]))
    })
  })
)
