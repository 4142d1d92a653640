import { assert, describe, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { TestClock } from "effect/testing"
import { Plugin, PluginHost } from "../../src/index.ts"
import { Auth, AuthStore } from "../../src/plugins/auth/index.ts"
import { makeCluster } from "./cluster.ts"

/** The memory store, which counts what it is asked, and can be slow to answer. */
const makeStore = () => {
  const calls = { policy: 0, isRevoked: 0, purge: 0 }
  const slow: { by: Duration.Input } = { by: 0 }
  const layer = Layer.effect(
    AuthStore.AuthStore,
    Effect.gen(function* () {
      const store = yield* AuthStore.AuthStore
      const counted = <A, E>(call: keyof typeof calls, effect: Effect.Effect<A, E>) =>
        Effect.suspend(() => {
          calls[call]++
          // What was read when it was asked, told later.
          return Effect.tap(effect, () => Effect.sleep(slow.by))
        })
      return {
        ...store,
        policy: counted("policy", store.policy),
        isRevoked: (id) => counted("isRevoked", store.isRevoked(id)),
        purge: (now) => counted("purge", store.purge(now))
      }
    })
  ).pipe(Layer.provide(AuthStore.layerMemory))
  return { calls, slow, layer }
}

const setup = (instances: number) =>
  Effect.gen(function* () {
    const { calls, layer, slow } = makeStore()
    const cluster = yield* makeCluster({ stores: layer, services: Auth.layer, host: PluginHost.layer([Auth.plugin]) })
    const apps = []
    for (let i = 0; i < instances; i++) apps.push(yield* cluster.start(`i${i}`))
    return { calls, slow, apps: apps as [(typeof apps)[number], (typeof apps)[number], (typeof apps)[number]] }
  })

const policy = Auth.Auth.use((auth) => auth.policy)
const setPolicy = (policy: AuthStore.TokenPolicy) => Auth.Auth.use((auth) => auth.setPolicy(policy))
const revoke = (token: Auth.Token) => Auth.Auth.use((auth) => auth.revoke(token))
const check = (token: Auth.Token, options?: { readonly fresh?: boolean }) =>
  Auth.Auth.use((auth) => auth.check(token, options))
/** A token as the default policy would issue it now. */
const tokenNow = (id: string) =>
  Effect.map(
    DateTime.now,
    (now): Auth.Token => ({ id, expiresAt: DateTime.add(now, { seconds: AuthStore.defaultPolicy.tokenSeconds }) })
  )
const issue = Auth.Auth.use((auth) => auth.issue)

/** The plugin's cache of revocations, seen from outside. */
const revocations = Plugin.namespace("auth").cache("revoked", Schema.Boolean)

describe("the token policy", () => {
  it.effect("is read from the store once for all instances, and again after 60 seconds", () =>
    Effect.gen(function* () {
      const { apps, calls } = yield* setup(3)
      assert.strictEqual(calls.policy, 1) // the first instance warmed it
      for (const app of apps) {
        for (let i = 0; i < 10; i++) assert.deepStrictEqual(yield* app.on(policy), AuthStore.defaultPolicy)
      }
      yield* TestClock.adjust("59 seconds")
      yield* apps[1].on(policy)
      assert.strictEqual(calls.policy, 1)
      yield* TestClock.adjust("1 second")
      for (const app of apps) yield* app.on(policy)
      assert.strictEqual(calls.policy, 2)
    })
  )

  it.effect("asked for by many at once, on every instance, is one read", () =>
    Effect.gen(function* () {
      const { apps, calls, slow } = yield* setup(3)
      yield* TestClock.adjust("60 seconds")
      slow.by = "2 seconds"
      const asking = yield* Effect.forkChild(
        Effect.forEach([...apps, ...apps, ...apps], (app) => app.on(policy), { concurrency: "unbounded" })
      )
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual((yield* Fiber.join(asking)).length, 9)
      assert.strictEqual(calls.policy, 2)
      const loads = yield* Effect.forEach(apps, (app) => app.on(Auth.Auth.use((auth) => auth.policyLoads)))
      assert.strictEqual(
        loads.reduce((sum, count) => sum + count),
        2
      )
    })
  )

  it.effect("changed on one instance is seen on every instance at once", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(3)
      const next = { tokenSeconds: 60, maxSessions: 1 }
      yield* apps[2].on(setPolicy(next))
      for (const app of apps) assert.deepStrictEqual(yield* app.on(policy), next)
      const again = { tokenSeconds: 61, maxSessions: 2 }
      yield* apps[0].on(setPolicy(again))
      for (const app of apps) assert.deepStrictEqual(yield* app.on(policy), again)
    })
  )

  it.effect("changed while another instance loads it, is not overwritten by what that load has read", () =>
    Effect.gen(function* () {
      const { apps, slow } = yield* setup(2)
      yield* TestClock.adjust("60 seconds")
      slow.by = "2 seconds"
      const loading = yield* Effect.forkChild(apps[1].on(policy))
      yield* TestClock.adjust("1 second")
      const next = { tokenSeconds: 60, maxSessions: 1 }
      yield* apps[0].on(setPolicy(next))
      yield* TestClock.adjust("1 second")
      yield* Fiber.join(loading)
      slow.by = 0
      for (const app of apps) assert.deepStrictEqual(yield* app.on(policy), next)
    })
  )

  it.effect("decides when the tokens issued under it expire", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2)
      yield* apps[0].on(setPolicy({ tokenSeconds: 100, maxSessions: 1 }))
      const token = yield* apps[1].on(issue)
      yield* TestClock.adjust("99 seconds")
      assert.strictEqual(yield* apps[0].on(check(token)), "valid")
      yield* TestClock.adjust("1 second")
      assert.strictEqual(yield* apps[0].on(check(token)), "expired")
      assert.notStrictEqual(token.id, (yield* apps[0].on(issue)).id)
    })
  )

  it.effect("brings no token back to life when it becomes longer", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2)
      yield* apps[0].on(setPolicy({ tokenSeconds: 100, maxSessions: 1 }))
      const [expired, revoked] = [yield* apps[0].on(issue), yield* apps[0].on(issue)]
      yield* apps[0].on(revoke(revoked))
      yield* TestClock.adjust("2 hours") // the revocation is purged
      yield* apps[1].on(setPolicy({ tokenSeconds: 100_000, maxSessions: 1 }))
      assert.strictEqual(yield* apps[0].on(check(expired)), "expired")
      assert.strictEqual(yield* apps[0].on(check(revoked)), "expired")
    })
  )
})

describe("revocation", () => {
  it.effect("a token revoked on one instance is revoked on every instance, at once", () =>
    Effect.gen(function* () {
      const { apps, calls } = yield* setup(3)
      const [mine, other] = [yield* tokenNow("mine"), yield* tokenNow("other")]
      for (const app of apps) assert.strictEqual(yield* app.on(check(mine)), "valid")
      const before = calls.isRevoked
      yield* apps[1].on(revoke(mine))
      for (const app of apps) assert.strictEqual(yield* app.on(check(mine)), "revoked")
      // Told by the cache, not by the store.
      assert.strictEqual(calls.isRevoked, before)
      for (const app of apps) assert.strictEqual(yield* app.on(check(other)), "valid")
    })
  )

  it.effect("is kept for as long as the token would have lived, and no longer", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2)
      const token = yield* tokenNow("t")
      yield* TestClock.adjust("1000 seconds")
      yield* apps[0].on(revoke(token))
      const cache = yield* apps[1].on(revocations)
      const left = () => Effect.map(cache.ttl("t"), Option.map(Duration.toSeconds))
      assert.deepStrictEqual(yield* left(), Option.some(2_600))
      yield* TestClock.adjust("2599 seconds")
      assert.strictEqual(yield* apps[1].on(check(token)), "revoked")
      assert.deepStrictEqual(yield* left(), Option.some(1))
      yield* TestClock.adjust("1 second")
      assert.deepStrictEqual(yield* left(), Option.none())
      assert.strictEqual(yield* apps[1].on(check(token)), "expired")
    })
  )

  it.effect("two tokens of different age keep their own time", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2)
      const old = yield* tokenNow("old")
      yield* TestClock.adjust("3000 seconds")
      const young = yield* tokenNow("young")
      yield* apps[0].on(revoke(old))
      yield* apps[0].on(revoke(young))
      const cache = yield* apps[1].on(revocations)
      assert.deepStrictEqual(yield* cache.ttl("old"), Option.some(Duration.seconds(600)))
      assert.deepStrictEqual(yield* cache.ttl("young"), Option.some(Duration.seconds(3_600)))
    })
  )

  it.effect("found in the store it is cached for the time the token has left", () =>
    Effect.gen(function* () {
      const { apps, calls } = yield* setup(2)
      const token = yield* tokenNow("t")
      yield* apps[0].on(revoke(token))
      const cache = yield* apps[0].on(revocations)
      yield* cache.reset
      yield* TestClock.adjust("600 seconds")
      for (const app of apps) assert.strictEqual(yield* app.on(check(token)), "revoked")
      assert.strictEqual(calls.isRevoked, 1)
      assert.deepStrictEqual(yield* cache.ttl("t"), Option.some(Duration.seconds(3_000)))
    })
  )

  it.effect(`"not revoked" is never cached: every check asks the store`, () =>
    Effect.gen(function* () {
      const { apps, calls } = yield* setup(2)
      const token = yield* tokenNow("t")
      for (let i = 1; i <= 3; i++) {
        for (const app of apps) assert.strictEqual(yield* app.on(check(token)), "valid")
        assert.strictEqual(calls.isRevoked, i * apps.length)
      }
      assert.deepStrictEqual(yield* Effect.flatMap(apps[0].on(revocations), (cache) => cache.keys()), [])
    })
  )

  it.effect("revoked while a check loads, the cache keeps it revoked", () =>
    Effect.gen(function* () {
      const { apps, slow } = yield* setup(2)
      const token = yield* tokenNow("t")
      slow.by = "1 second"
      const checking = yield* Effect.forkChild(apps[0].on(check(token)))
      yield* TestClock.adjust("500 millis")
      yield* apps[1].on(revoke(token))
      yield* TestClock.adjust("500 millis")
      yield* Fiber.join(checking)
      for (const app of apps) assert.strictEqual(yield* app.on(check(token)), "revoked")
    })
  )

  it.effect("a fresh check asks the store and leaves the cache alone", () =>
    Effect.gen(function* () {
      const { apps, calls } = yield* setup(2)
      const token = yield* tokenNow("t")
      yield* apps[0].on(revoke(token))
      assert.strictEqual(calls.isRevoked, 0)
      assert.strictEqual(yield* apps[1].on(check(token, { fresh: true })), "revoked")
      assert.strictEqual(calls.isRevoked, 1)
      // A fresh "revoked" is not written, either.
      const cache = yield* apps[1].on(revocations)
      yield* cache.reset
      assert.strictEqual(yield* apps[1].on(check(token, { fresh: true })), "revoked")
      assert.deepStrictEqual(yield* cache.keys(), [])
      // And a cached one that the store no longer knows is not believed.
      yield* cache.set("gone", true)
      const gone = yield* tokenNow("gone")
      assert.strictEqual(yield* apps[0].on(check(gone)), "revoked")
      assert.strictEqual(yield* apps[0].on(check(gone, { fresh: true })), "valid")
      assert.strictEqual(yield* apps[0].on(check(gone)), "revoked")
    })
  )

  it.effect("of a token that has expired does nothing", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(1)
      const token = yield* tokenNow("t")
      yield* TestClock.adjust("1 hour")
      yield* apps[0].on(revoke(token))
      assert.isFalse(yield* apps[0].on(AuthStore.AuthStore.use((store) => store.isRevoked("t"))))
    })
  )
})

describe("the purge", () => {
  it.effect("forgets, every hour, the revocations that ran out, and no others", () =>
    Effect.gen(function* () {
      const { apps } = yield* setup(2)
      const old = yield* tokenNow("old")
      yield* apps[0].on(revoke(old))
      yield* TestClock.adjust("30 minutes")
      const young = yield* tokenNow("young")
      yield* apps[0].on(revoke(young))
      const isRevoked = (id: string) => apps[1].on(AuthStore.AuthStore.use((store) => store.isRevoked(id)))
      yield* TestClock.adjust("29 minutes")
      assert.isTrue(yield* isRevoked("old"))
      yield* TestClock.adjust("1 minute")
      assert.isFalse(yield* isRevoked("old"))
      assert.isTrue(yield* isRevoked("young"))
    })
  )

  it.effect("is done by one instance only, and by another when that one stops", () =>
    Effect.gen(function* () {
      const { apps, calls } = yield* setup(3)
      yield* TestClock.adjust("59 minutes")
      assert.strictEqual(calls.purge, 0)
      yield* TestClock.adjust("1 minute")
      assert.strictEqual(calls.purge, 1)
      yield* TestClock.adjust("2 hours")
      assert.strictEqual(calls.purge, 3)
      yield* apps[0].close
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(calls.purge, 4)
      yield* apps[1].close
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(calls.purge, 5)
    })
  )

  it.effect("goes over to another instance when the one that does it is cut off", () =>
    Effect.gen(function* () {
      const { apps, calls } = yield* setup(2)
      yield* apps[0].disconnect
      // The lease runs out, and with it the purge on the instance that held it.
      yield* TestClock.adjust("1 minute")
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(calls.purge, 1)
      yield* apps[0].reconnect
      yield* TestClock.adjust("1 hour")
      assert.strictEqual(calls.purge, 2)
    })
  )
})
