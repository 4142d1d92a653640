/** A program that lacks what its plugins require does not compile. Checked by types.test.ts; never run. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { Cache, Cohort, EventQueue, Job, Lock, Plugin, PluginHost, PubSub, Topic } from "../../src/index.ts"
import { Auth, AuthStore } from "../../src/plugins/auth/index.ts"
import { assertEqual, type RequirementsOf } from "./expect.ts"

class Mailer extends Context.Service<Mailer, { readonly send: (to: string) => Effect.Effect<void> }>()("test/Mailer") {}
const mailer = Layer.succeed(Mailer, { send: () => Effect.void })

const Greet = Topic.make("greet", Schema.Struct({ name: Schema.String }))
const Work = Job.make("work", Schema.Struct({ id: Schema.String }))

const greeter = Plugin.make("greeter", {
  load: PubSub.subscribe(Greet, ({ name }) => Mailer.use((mailer) => mailer.send(name)))
})
const worker = Plugin.make("worker", {
  load: Effect.andThen(EventQueue.subscribe(Work, { process: () => Effect.void }), Lock.acquire("leader"))
})

/** What `Layer.launch` and a run take. */
const launch = <A, E>(layer: Layer.Layer<A, E>): Effect.Effect<never, E> => Layer.launch(layer)

// --- a host requires what its plugins require, and nothing else ---

const host = PluginHost.layer([greeter, worker])
assertEqual<RequirementsOf<typeof host>, Mailer | PubSub.PubSub | EventQueue.EventQueue | Lock.Lock>(true)

const made = PluginHost.make([greeter])
assertEqual<RequirementsOf<typeof made>, Mailer | PubSub.PubSub | Scope.Scope>(true)

const none = PluginHost.layer([Plugin.make("none", {})])
assertEqual<RequirementsOf<typeof none>, never>(true)
launch(none)

const inline = PluginHost.layer([Plugin.make("inline", { load: Mailer.use((mailer) => mailer.send("me")) })])
assertEqual<RequirementsOf<typeof inline>, Mailer>(true)
launch(inline.pipe(Layer.provide(mailer)))

// --- with everything provided it launches ---

launch(host.pipe(Layer.provide(mailer), Layer.provide(Cohort.layerMemory())))
launch(host.pipe(Layer.provide([mailer, Cohort.layerMemory({ app: "shop" })])))

// --- without the plugin's own service it does not ---

// @ts-expect-error Mailer is missing
launch(host.pipe(Layer.provide(Cohort.layerMemory())))

// --- without a backend it does not ---

// @ts-expect-error PubSub, EventQueue and Lock are missing
launch(host.pipe(Layer.provide(mailer)))

// --- without one primitive's port it does not ---

// @ts-expect-error the stores are missing
launch(host.pipe(Layer.provide(mailer), Layer.provide(Cohort.layer)))

// --- a plugin that ships needs its own services as well ---

launch(
  PluginHost.layer([Auth.plugin]).pipe(
    Layer.provide(Auth.layer),
    Layer.provide([AuthStore.layerMemory, Cohort.layerMemory()])
  )
)

// @ts-expect-error AuthStore is missing
launch(PluginHost.layer([Auth.plugin]).pipe(Layer.provide(Auth.layer), Layer.provide(Cohort.layerMemory())))

// --- what a Schema requires is required too ---

class Key extends Context.Service<Key, string>()("test/Key") {}
declare const Sealed: Schema.Codec<string, string, Key, Key>
const Secret = Topic.make("secret", Sealed)
const publishSecret = PubSub.publish(Secret, "text")
assertEqual<RequirementsOf<typeof publishSecret>, PubSub.PubSub | Key>(true)
const subscribeSecret = PubSub.subscribe(Secret, () => Effect.void)
assertEqual<RequirementsOf<typeof subscribeSecret>, PubSub.PubSub | Key | Scope.Scope>(true)

// --- the exclusive wrap needs a Lock, the other does not ---

export const wraps = Effect.gen(function* () {
  const cache = yield* Cache.make("names", Schema.String)

  const plain = cache.wrap("key", Effect.succeed("value"))
  assertEqual<RequirementsOf<typeof plain>, never>(true)
  const shared = cache.wrap("key", Effect.succeed("value"), { exclusive: false, ttl: "1 minute" })
  assertEqual<RequirementsOf<typeof shared>, never>(true)
  const exclusive = cache.wrap("key", Effect.succeed("value"), { exclusive: true })
  assertEqual<RequirementsOf<typeof exclusive>, Lock.Lock>(true)
  const maybe = cache.wrap("key", Effect.succeed("value"), { exclusive: process.argv.length > 2 })
  assertEqual<RequirementsOf<typeof maybe>, Lock.Lock>(true)
  const options: Cache.WrapOptions = { exclusive: true }
  const hidden = cache.wrap("key", Effect.succeed("value"), options)
  assertEqual<RequirementsOf<typeof hidden>, Lock.Lock>(true)

  // @ts-expect-error Lock is missing
  const withoutLock: Effect.Effect<string, Cache.CacheError> = exclusive
  return withoutLock
})

// @ts-expect-error Lock is missing: a cache alone cannot keep the other instances from loading
export const withoutLock: Effect.Effect<string, Cache.CacheError, Cache.Cache> = Effect.flatMap(
  Cache.make("names", Schema.String),
  (cache) => cache.wrap("key", Effect.succeed("value"), { exclusive: true })
)

// --- a near cache needs PubSub, the other does not ---

const far = Cache.make("names", Schema.String, { ttl: "1 minute" })
assertEqual<RequirementsOf<typeof far>, Cache.Cache>(true)
const notNear = Cache.make("names", Schema.String, { near: false })
assertEqual<RequirementsOf<typeof notNear>, Cache.Cache>(true)
const near = Cache.make("names", Schema.String, { near: true, ttl: "1 minute" })
assertEqual<RequirementsOf<typeof near>, Cache.Cache | PubSub.PubSub>(true)
const nearWith = Cache.make("names", Schema.String, { near: { ttl: "1 second" } })
assertEqual<RequirementsOf<typeof nearWith>, Cache.Cache | PubSub.PubSub>(true)
const maybeNear = Cache.make("names", Schema.String, {} as Cache.Options)
assertEqual<RequirementsOf<typeof maybeNear>, Cache.Cache | PubSub.PubSub>(true)
