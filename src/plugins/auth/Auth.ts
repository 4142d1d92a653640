/**
 * Token policy and revocation, read through the cluster's cache.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Cache from "../../services/Cache.ts"
import * as AfterCommit from "../../services/internal/afterCommit.ts"
import * as Lock from "../../services/Lock.ts"
import * as Plugin from "../../services/Plugin.ts"
import * as Uuid from "../../services/Uuid.ts"
import type { StoreError } from "../StoreError.ts"
import { AuthStore, TokenPolicy } from "./AuthStore.ts"

const names = Plugin.namespace("auth")

/**
 * What a token says of itself. Its end is fixed when it is issued: a policy that
 * changes later brings no token back to life.
 *
 * @since 0.1.0
 */
export const Token = Schema.Struct({ id: Schema.NonEmptyString, expiresAt: Schema.DateTimeUtcFromString })

/**
 * @since 0.1.0
 */
export type Token = typeof Token.Type

/**
 * What {@link Auth} says of a token.
 *
 * @since 0.1.0
 */
export const Verdict = Schema.Literals(["valid", "expired", "revoked"])

/**
 * @since 0.1.0
 */
export type Verdict = typeof Verdict.Type

/**
 * @since 0.1.0
 */
export class Auth extends Context.Service<
  Auth,
  {
    /** The policy in force, at most a minute old, and current right after a change anywhere. */
    readonly policy: Effect.Effect<TokenPolicy, StoreError | Cache.CacheError>
    /** How often this instance has read the policy from the store. */
    readonly policyLoads: Effect.Effect<number>
    /** In an open transaction, instances read the new policy from its commit on. */
    readonly setPolicy: (policy: TokenPolicy) => Effect.Effect<void, StoreError | Cache.CacheError>
    /** A new token, valid for as long as the policy says. */
    readonly issue: Effect.Effect<Token, StoreError | Cache.CacheError>
    /** Revokes a token on every instance, for as long as it would have been valid; in an open transaction, with its commit. */
    readonly revoke: (token: Token) => Effect.Effect<void, StoreError | Cache.CacheError>
    /** `fresh` asks the store and leaves the cache alone. */
    readonly check: (
      token: Token,
      options?: { readonly fresh?: boolean | undefined }
    ) => Effect.Effect<Verdict, StoreError | Cache.CacheError>
  }
>()("cohort/plugins/auth/Auth") {}

/**
 * Provides {@link Auth}.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<Auth, Cache.CacheError, AuthStore | Cache.Cache | Lock.Lock> = Layer.effect(
  Auth,
  Effect.gen(function* () {
    const store = yield* AuthStore
    const policies = yield* names.cache("policy", TokenPolicy, { ttl: "60 seconds" })
    const revoked = yield* names.cache("revoked", Schema.Boolean)

    const lock = yield* Lock.Lock
    const uuid = yield* Uuid.Generator
    const afterCommit = yield* AfterCommit.make((reason) => new Cache.CacheError({ reason }))
    let policyLoads = 0

    // One load per cluster, however many instances find the cache empty at once.
    const policy = policies
      .wrap(
        "default",
        Effect.tap(store.policy, () => Effect.sync(() => policyLoads++)),
        { exclusive: true }
      )
      .pipe(Effect.provideService(Lock.Lock, lock))

    /** Time a token has left; `undefined` when it has none. */
    const timeLeft = (token: Token) =>
      Effect.map(DateTime.now, (now) => {
        const left = DateTime.distance(now, token.expiresAt)
        return Duration.isGreaterThan(left, Duration.zero) ? left : undefined
      })

    return Auth.of({
      policy,
      policyLoads: Effect.sync(() => policyLoads),

      setPolicy: (next) =>
        Effect.andThen(
          store.setPolicy(next),
          // Before the commit, others would read the old one and keep it.
          afterCommit.send(Effect.asVoid(policies.del("default")), undefined, { cache: "policy" })
        ),

      issue: Effect.gen(function* () {
        const { tokenSeconds } = yield* policy
        return {
          id: uuid(),
          expiresAt: DateTime.add(yield* DateTime.now, { seconds: tokenSeconds })
        }
      }),

      revoke: Effect.fnUntraced(function* (token) {
        const left = yield* timeLeft(token)
        if (left === undefined) return
        yield* store.revoke(token.id, token.expiresAt)
        yield* afterCommit.send(revoked.set(token.id, true, { ttl: left }), undefined, { cache: "revoked" })
      }),

      check: Effect.fnUntraced(function* (token, options) {
        const left = yield* timeLeft(token)
        if (left === undefined) return "expired"
        // Only "revoked" is kept, and no longer than the token could have lived: a token
        // that is not revoked now may be in a moment.
        const isRevoked = yield* revoked.wrapWithCondition(token.id, store.isRevoked(token.id), {
          useCache: options?.fresh !== true,
          isCacheable: (isRevoked) => isRevoked,
          ttl: left
        })
        return isRevoked ? "revoked" : "valid"
      })
    })
  })
)

/**
 * The plugin: warms the policy, and lets one instance of the cluster forget
 * revocations that have run out, every hour.
 *
 * @since 0.1.0
 */
export const plugin = Plugin.make(names.name, {
  load: Effect.gen(function* () {
    const auth = yield* Auth
    const store = yield* AuthStore
    yield* auth.policy
    const purge = Effect.gen(function* () {
      const purged = yield* store.purge(yield* DateTime.now)
      if (purged > 0) yield* Effect.logDebug(`Forgot ${purged} revocations that ran out`)
    }).pipe(
      Effect.catchCause((cause) => Effect.logWarning("Purging revocations failed", cause)),
      Effect.delay("1 hour"),
      Effect.forever
    )
    yield* Lock.runExclusive(names.key("purge"), purge).pipe(
      Effect.catch((error) =>
        Effect.delay(Effect.logWarning("Not purging revocations for now", error.message), "5 seconds")
      ),
      Effect.forever,
      Effect.forkScoped
    )
  })
})
