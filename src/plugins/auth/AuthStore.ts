/**
 * What `auth` keeps: the token policy and the revoked tokens.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type { StoreError } from "../StoreError.ts"

/**
 * How long tokens live, and how many sessions a user may have.
 *
 * @since 0.1.0
 */
export const TokenPolicy = Schema.Struct({
  /** Seconds a token is valid. */
  tokenSeconds: Schema.Int.check(Schema.isGreaterThan(0)),
  maxSessions: Schema.Int.check(Schema.isGreaterThan(0))
})

/**
 * @since 0.1.0
 */
export type TokenPolicy = typeof TokenPolicy.Type

/**
 * The policy until one is set: an hour, five sessions.
 *
 * @since 0.1.0
 */
export const defaultPolicy: TokenPolicy = { tokenSeconds: 3_600, maxSessions: 5 }

/**
 * The store that every instance shares.
 *
 * @since 0.1.0
 */
export class AuthStore extends Context.Service<
  AuthStore,
  {
    readonly policy: Effect.Effect<TokenPolicy, StoreError>
    readonly setPolicy: (policy: TokenPolicy) => Effect.Effect<void, StoreError>
    /** Remembers a revoked token until it would have expired anyway. */
    readonly revoke: (tokenId: string, expiresAt: DateTime.Utc) => Effect.Effect<void, StoreError>
    readonly isRevoked: (tokenId: string) => Effect.Effect<boolean, StoreError>
    /** Forgets revocations of tokens that have expired; returns how many. */
    readonly purge: (now: DateTime.Utc) => Effect.Effect<number, StoreError>
  }
>()("cohort/plugins/auth/AuthStore") {}

/**
 * In the memory of this process; give the instances of a cluster one such layer.
 *
 * @since 0.1.0
 */
export const layerMemory: Layer.Layer<AuthStore> = Layer.sync(AuthStore, () => {
  let policy = defaultPolicy
  const revoked = new Map<string, DateTime.Utc>()
  return AuthStore.of({
    policy: Effect.sync(() => policy),
    setPolicy: (next) =>
      Effect.sync(() => {
        policy = next
      }),
    revoke: (tokenId, expiresAt) =>
      Effect.sync(() => {
        revoked.set(tokenId, expiresAt)
      }),
    isRevoked: (tokenId) => Effect.sync(() => revoked.has(tokenId)),
    purge: (now) =>
      Effect.sync(() => {
        const expired = [...revoked].filter(([, expiresAt]) => expiresAt.epochMilliseconds <= now.epochMilliseconds)
        for (const [tokenId] of expired) revoked.delete(tokenId)
        return expired.length
      })
  })
})
