"""What connected hosts offer, to whoever has an account."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpResponse
from drf_spectacular.utils import OpenApiParameter, extend_schema
from pydantic import ValidationError
from rest_framework.request import Request
from rest_framework.views import APIView

from labapex.protocol.api import OfferOrder, OfferPage
from labapex.protocol.canonical import complaints, explain
from labapex.protocol.spec import Constraints
from labapex_server.api import pages
from labapex_server.api.authentication import needs
from labapex_server.api.exchange import answer
from labapex_server.lib.errors import Refused
from labapex_server.marketplace import offers

_CONSTRAINTS = [
    OpenApiParameter("device", {"type": "string", "minLength": 1, "maxLength": 180}, description="A part of its name."),
    OpenApiParameter("min_memory", {"type": "number", "minimum": 0}, description="Of the device, in GB (10^9 bytes)."),
    OpenApiParameter("max_price", {"type": "number"}, description="Credits an hour."),
    OpenApiParameter("min_speed", {"type": "number", "minimum": 0}, description="GFLOP/s that the host has shown."),
    OpenApiParameter(
        "min_deposit", {"type": "number"}, description="Credits that its owner loses when it is found to have lied."
    ),
    OpenApiParameter(
        "sort", enum=[order.value for order in OfferOrder], description="What comes first; default: price."
    ),
]


class Offers(APIView):
    scopes = needs(GET=None)

    @extend_schema(
        operation_id="list_offers",
        tags=["offers"],
        summary="What connected hosts offer, the best first",
        parameters=[*_CONSTRAINTS, *pages.PARAMETERS],
        responses=OfferPage,
    )
    def get(self, request: Request) -> HttpResponse:
        asked = request.query_params
        try:
            wanted = Constraints.model_validate(
                {name: asked[name] for name in Constraints.model_fields if name in asked}
            )
            order = OfferOrder(asked.get("sort", OfferOrder.PRICE))
        except ValidationError as error:
            raise Refused(explain(error), errors=complaints(error)) from None
        except ValueError:
            words = f"one of {', '.join(OfferOrder)}"
            raise Refused(f"'sort' must be {words}", errors={"sort": words}) from None
        found = offers.find(wanted, order)
        shown, following = pages.page_of(found.offers, lambda offer: offers.place(offer, order), request)
        return answer(
            OfferPage(
                results=tuple(shown),
                next=following,
                total=len(found.offers),
                free=found.free,
                lacking=found.lacking,
                fee_basis_points=settings.LABAPEX.fee_basis_points,
            )
        )
