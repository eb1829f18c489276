"""Every documented error of Stripe, by what to do next; docs/reference/vendor-errors.md is written from it.

API reference, "Errors"; guide "Error codes" (docs.stripe.com/error-codes). Before the code, `failures` weighs the HTTP
status and the headers: whether a call may be repeated, and whether the object itself is missing.
"""

from __future__ import annotations

from collections.abc import Mapping

from subscribers.errors import Reject, Retry, SyncError, SystemDown


class KeySpent(Retry):
    """Stripe accepts no new call with this Idempotency-Key: first look the object up, then use another key."""


#: About the key or the account, so that every call would fail; or no more calls for now.
_DOWN = """
account_invalid api_key_expired livemode_mismatch platform_api_key_expired rate_limit secret_key_required
testmode_charges_only tls_version_unsupported
"""
#: Something that Stripe itself waits for.
_LATER = """
billing_policy_remote_function_timeout billing_policy_remote_function_unreachable failed_tax_calculation
forwarding_api_retryable_upstream_error forwarding_api_upstream_connection_error
forwarding_api_upstream_connection_timeout forwarding_api_upstream_error idempotency_key_in_use lock_timeout
payment_intent_rate_limit_exceeded payment_method_provider_timeout processing_error shipping_calculation_failed
taxes_calculation_failed terminal_reader_busy terminal_reader_offline terminal_reader_timeout
three_d_secure_authentication_upstream_error
"""

#: Code of the error, which names the remedy of a dead letter -> what Stripe refuses.
_REFUSED: Mapping[str, str] = {
    "permission_missing": """
account_capability_not_enabled not_allowed_on_standard_account platform_account_required request_blocked
""",
    "duplicate": "bank_account_exists resource_already_exists",
    "invalid_email": "email_invalid",
    "required_field_missing": """
missing parameter_invalid_empty parameter_invalid_string_blank parameter_invalid_string_empty parameter_missing
payment_method_billing_details_address_missing
""",
    "unknown_field": "parameter_unknown",
    "reference_missing": "no_account resource_missing",
    "wrong_state": """
invoice_not_editable invoice_on_behalf_of_not_editable parameters_exclusive status_transition_invalid
""",
    "invalid_value": """
account_country_invalid_address amount_too_large amount_too_small country_code_invalid country_unsupported
customer_tax_location_invalid invalid_characters invalid_charge_amount_no_decimal_compatible invalid_tax_location
parameter_invalid parameter_invalid_integer postal_code_invalid shipping_address_invalid siret_invalid
state_unsupported tax_id_invalid url_invalid
""",
    "": """
account_closed account_error_country_change_requires_additional_steps account_information_mismatch
account_number_invalid account_token_required_for_v2_account acss_debit_session_incomplete action_blocked
alipay_upgrade_required anomalous_money_movement_request application_fees_not_allowed approval_required
authentication_failure authentication_required balance_insufficient balance_invalid_parameter
bank_account_bad_routing_numbers bank_account_declined bank_account_restricted bank_account_unusable
bank_account_unverified bank_account_verification_failed billing_invalid_mandate bitcoin_upgrade_required
capability_not_active capture_charge_authorization_expired capture_unauthorized_payment
card_decline_rate_limit_exceeded card_declined cardholder_phone_number_required charge_already_captured
charge_already_refunded charge_disputed charge_exceeds_source_limit charge_exceeds_transaction_limit
charge_expired_for_capture charge_invalid_parameter charge_not_refundable clearing_code_unsupported coupon_expired
customer_max_payment_methods customer_max_subscriptions customer_session_expired debit_not_authorized
dispute_evidence_page_limit_exceeded expired_card expired_payment_method
financial_account_balance_does_not_support_currency financial_account_capability_not_enabled
financial_account_capability_restricted financial_connections_account_inactive
financial_connections_account_pending_account_numbers financial_connections_account_unavailable_account_numbers
financial_connections_consent_locale_invalid financial_connections_consent_locale_unsupported
financial_connections_no_successful_transaction_refresh forwarding_api_inactive forwarding_api_invalid_parameter
incorrect_address incorrect_cvc incorrect_number incorrect_postal_code incorrect_zip
india_recurring_payment_mandate_canceled instant_payouts_config_disabled instant_payouts_currency_disabled
instant_payouts_limit_exceeded instant_payouts_unsupported insufficient_funds intent_invalid_state
intent_verification_method_missing invalid_canceled_subscription_fields invalid_card_type invalid_charge_amount
invalid_cvc invalid_expiry_month invalid_expiry_year invalid_mandate_reference_prefix_format invalid_number
invalid_source_usage invoice_no_customer_line_items invoice_no_payment_method_types invoice_no_subscription_line_items
invoice_payment_intent_requires_action invoice_upcoming_none out_of_inventory ownership_declaration_not_allowed
payment_evaluation_on_api_version_not_supported payment_intent_action_required payment_intent_authentication_failure
payment_intent_incompatible_payment_method payment_intent_invalid_parameter
payment_intent_konbini_rejected_confirmation_number payment_intent_mandate_invalid
payment_intent_payment_attempt_expired payment_intent_payment_attempt_failed payment_intent_unexpected_state
payment_method_bank_account_already_verified payment_method_bank_account_blocked payment_method_configuration_failures
payment_method_currency_mismatch payment_method_customer_decline payment_method_invalid_parameter
payment_method_invalid_parameter_testmode payment_method_microdeposit_failed
payment_method_microdeposit_processing_error payment_method_microdeposit_verification_amounts_invalid
payment_method_microdeposit_verification_amounts_mismatch payment_method_microdeposit_verification_attempts_exceeded
payment_method_microdeposit_verification_descriptor_code_mismatch payment_method_microdeposit_verification_timeout
payment_method_not_available payment_method_provider_decline payment_method_restricted payment_method_unactivated
payment_method_unexpected_state payment_method_unsupported_type payout_reconciliation_not_ready payouts_limit_exceeded
payouts_not_allowed product_inactive progressive_onboarding_limit_exceeded refer_to_customer refund_disputed_payment
return_intent_already_processed routing_number_invalid sepa_unsupported_account
service_period_coupon_with_metered_tiered_item_unsupported setup_attempt_failed setup_intent_authentication_failure
setup_intent_invalid_parameter setup_intent_mandate_invalid setup_intent_mobile_wallet_unsupported
setup_intent_setup_attempt_expired setup_intent_unexpected_state sku_inactive smart_disputes_not_available
storer_capability_missing storer_capability_not_active stripe_tax_inactive
subscription_update_trial_after_billing_cycle_anchor tax_id_prohibited terminal_location_country_unsupported
terminal_reader_hardware_fault terminal_reader_invalid_location_for_activation
terminal_reader_invalid_location_for_payment three_d_secure_authentication_not_supported token_already_used
token_card_network_invalid token_in_use transfer_source_balance_parameters_mismatch transfers_not_allowed
""",
}

#: `code` of an error -> its class.
TABLE: Mapping[str, type[SyncError]] = {
    **dict.fromkeys(_DOWN.split(), SystemDown),
    **dict.fromkeys(_LATER.split(), Retry),
    **dict.fromkeys((name for names in _REFUSED.values() for name in names.split()), Reject),
}

#: `code` of an error -> code of the error, which names the remedy of a dead letter.
CODES: Mapping[str, str] = {name: remedy for remedy, names in _REFUSED.items() if remedy for name in names.split()}

#: `type` of an error -> its class, if neither code nor status determines it.
TYPES: Mapping[str, type[SyncError]] = {
    "api_error": Retry,
    "authentication_error": SystemDown,
    "card_error": Reject,
    "idempotency_error": KeySpent,
    "invalid_request_error": Reject,
    "rate_limit_error": SystemDown,
}
