/** The contract of `SyncMessage` (design §4.3), for every backend. */
import type { Backend } from "./Backend.ts"
import { describeOn } from "./support.ts"
import * as Delivery from "./sync/delivery.ts"
import * as Fixture from "./sync/fixture.ts"
import * as Gaps from "./sync/gaps.ts"
import * as Refusals from "./sync/refusals.ts"
import * as Resync from "./sync/resync.ts"

export const suite = (backend: Backend): void => {
  const on = Fixture.make(backend)
  describeOn(backend, "SyncMessage", () => {
    Delivery.tests(on)
    Gaps.tests(on)
    Resync.tests(on)
    Refusals.tests(on)
  })
}
