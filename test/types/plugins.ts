/** What `Plugin.make` infers. Checked by types.test.ts; never run. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { type Cache, EventQueue, Job, Lock, Plugin, PubSub, SyncMessage, Topic } from "../../src/index.ts"
import type { Tasks } from "../../src/plugins/async-task-manager/index.ts"
import type { StoreError } from "../../src/plugins/index.ts"
import type { Auth } from "../../src/plugins/auth/index.ts"
import { assertEqual } from "./expect.ts"

class A extends Context.Service<A, { readonly a: Effect.Effect<void, "a failed"> }>()("test/A") {}
class B extends Context.Service<B, { readonly b: Effect.Effect<void, "b failed"> }>()("test/B") {}
const Text = Schema.Struct({ text: Schema.String })

// --- nothing: no error, no requirement ---

const empty = Plugin.make("empty", {})
assertEqual<typeof empty, Plugin.Plugin<"empty">>(true)
assertEqual<typeof empty, Plugin.Plugin<"empty", never, never>>(true)

// --- both phases count ---

const phases = Plugin.make("phases", { beforeLoad: A.use(({ a }) => a), load: B.use(({ b }) => b) })
assertEqual<typeof phases, Plugin.Plugin<"phases", "a failed" | "b failed", A | B>>(true)

// --- a phase's Scope is the host's to provide; what its handlers fail with is the queue's to retry ---

const Work = Job.make("work", Text)
const Word = Topic.make("word", Text)
const scoped = Plugin.make("scoped", {
  load: Effect.gen(function* () {
    yield* Lock.acquire("leader")
    yield* PubSub.subscribe(Word, () => A.use(({ a }) => a))
    yield* EventQueue.subscribe(Work, { process: () => B.use(({ b }) => b) })
  })
})
assertEqual<
  typeof scoped,
  Plugin.Plugin<
    "scoped",
    Lock.LockError | PubSub.PubSubError | EventQueue.EventQueueError,
    Lock.Lock | PubSub.PubSub | EventQueue.EventQueue | A | B
  >
>(true)

// --- a sync channel adds SyncMessage, its error, and what handle and resync require ---

const synced = Plugin.make("synced", {
  sync: {
    message: SyncMessage.make("synced", Text),
    handle: () => A.use(({ a }) => a),
    resync: B.use(({ b }) => b)
  }
})
assertEqual<typeof synced, Plugin.Plugin<"synced", SyncMessage.SyncMessageError, SyncMessage.SyncMessage | A | B>>(true)

// --- names and dependencies ---

const names = Plugin.namespace("named")
assertEqual<(typeof names)["name"], "named">(true)
const named = Plugin.make(names.name, { dependsOn: [empty, "other"] })
assertEqual<typeof named, Plugin.Plugin<"named">>(true)
// @ts-expect-error a dependency is a plugin, or its name
Plugin.make("wrong", { dependsOn: [1] })
// @ts-expect-error a phase is an Effect
Plugin.make("wrong", { load: () => Effect.void })
// @ts-expect-error there is no such phase
Plugin.make("wrong", { afterLoad: Effect.void })

// --- the plugins that ship ---

assertEqual<(typeof Auth.plugin)["name"], "auth">(true)
assertEqual<
  typeof Auth.plugin extends Plugin.Plugin<"auth", infer E, any> ? E : never,
  Cache.CacheError | StoreError.StoreError
>(true)
assertEqual<
  typeof Tasks.plugin extends Plugin.Plugin<"async-task-manager", infer E, any> ? E : never,
  PubSub.PubSubError | EventQueue.EventQueueError
>(true)
