"""Rates of requests that flow through engines that are alike."""
