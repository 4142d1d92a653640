import { Context, Effect, Layer, Schema } from "effect"
import { EventQueue, Plugin, SyncMessage } from "cohort"

const names = Plugin.namespace("mailing")
export const Mail = Schema.Struct({ to: Schema.String, text: Schema.String })
export const Send = names.job("send", Mail, { maxRetries: 3 })
export const Unsubscribed = names.sync(Schema.Struct({ address: Schema.String }))

/** What sends mails. */
export class Mailer extends Context.Service<
  Mailer,
  { readonly send: (mail: typeof Mail.Type) => Effect.Effect<void, string> }
>()("shop/Mailer") {}

/** Who wants no mails, as the database has it: the instances share it. */
export class Wishes extends Context.Service<Wishes, Set<string>>()("shop/Wishes") {
  static readonly layerMemory = Layer.sync(Wishes, () => new Set<string>())
}

/** The same in the memory of an instance: each has its own. */
export class Blocklist extends Context.Service<Blocklist, Set<string>>()("shop/Blocklist") {
  static readonly layer = Layer.sync(Blocklist, () => new Set<string>())
}

const reload = Effect.gen(function* () {
  const blocklist = yield* Blocklist
  for (const address of yield* Wishes) blocklist.add(address)
})

export const Mailing = Plugin.make(names.name, {
  sync: {
    message: Unsubscribed,
    handle: ({ address }) => Blocklist.useSync((blocklist) => blocklist.add(address)),
    resync: reload
  },
  beforeLoad: reload,
  load: Effect.gen(function* () {
    const mailer = yield* Mailer
    const blocklist = yield* Blocklist
    yield* EventQueue.subscribe(Send, {
      concurrency: 2,
      process: (mail) => (blocklist.has(mail.to) ? Effect.void : mailer.send(mail))
    })
  })
})

export const send = (to: string, text: string) => EventQueue.publish(Send, { to, text })

export const unsubscribe = (address: string) =>
  Effect.gen(function* () {
    const wishes = yield* Wishes
    const blocklist = yield* Blocklist
    wishes.add(address)
    blocklist.add(address)
    yield* SyncMessage.publish(Unsubscribed, { address })
  })
