/** The contract of `Cache` (design §4.1), for every backend. */
import type { Backend } from "./Backend.ts"
import * as Entries from "./cache/entries.ts"
import * as Fixture from "./cache/fixture.ts"
import * as Model from "./cache/model.ts"
import * as Near from "./cache/near.ts"
import * as Outage from "./cache/outage.ts"
import * as Values from "./cache/values.ts"
import * as Wrap from "./cache/wrap.ts"
import { describeOn } from "./support.ts"

export const suite = (backend: Backend): void => {
  const on = Fixture.make(backend)
  describeOn(backend, "Cache", () => {
    Values.tests(on)
    Entries.tests(on)
    Wrap.tests(on)
    Near.tests(on)
    Outage.tests(on)
    Model.tests(on)
  })
}
